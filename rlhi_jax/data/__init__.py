"""Interaction trees, from text on disk to the fixed-size rows that a train step reads."""
