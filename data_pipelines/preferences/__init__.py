"""Which rewrites and pairs are fit to learn from."""
