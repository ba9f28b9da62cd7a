"""Scores rows: computes log-probabilities and rewards for replies, pairs and candidates."""
