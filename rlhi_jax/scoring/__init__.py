"""Computes the log-probabilities and rewards of replies, including those of pairs and lists of candidates."""
