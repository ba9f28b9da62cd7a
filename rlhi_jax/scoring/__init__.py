"""From rows to scores: log-probabilities and rewards of replies, of pairs, and of candidates."""
