"""Checks the data, teacher and machine before a loop spends anything, and says what would stop the loop."""
