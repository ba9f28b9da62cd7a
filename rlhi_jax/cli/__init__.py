"""Command-line code that all programs share."""
