"""Read published preferences, choose rewrites to learn from, and check preference pairs for artefacts."""
