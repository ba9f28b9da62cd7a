"""Computes the log-probabilities and rewards of replies, pairs and candidates."""
