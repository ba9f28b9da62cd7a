"""The decoder: what it is made of, and pure functions of (params, batch)."""
