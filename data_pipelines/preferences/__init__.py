"""Reads published preferences, chooses rewrites to learn from, and checks preference pairs for artefacts."""
