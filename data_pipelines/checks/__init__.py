"""Checks the data, the teacher and the machine before a loop starts, and reports problems that would stop the loop."""
