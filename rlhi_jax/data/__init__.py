"""Turns interaction trees, stored as text, into the fixed-size rows that a train step reads."""
