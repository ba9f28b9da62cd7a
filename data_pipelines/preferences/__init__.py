"""Which rewrites and pairs of replies may be learned from."""
