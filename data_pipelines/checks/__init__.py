"""Checks of data, teacher and machine before a loop spends anything: what they show, and what would stop the loop."""
