"""Choose rewrites to learn from, and check preference pairs for artefacts."""
