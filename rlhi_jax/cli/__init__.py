"""The command line that all programs share."""
