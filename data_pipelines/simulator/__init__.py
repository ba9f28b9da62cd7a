"""Simulated users: what they ask, what they like, how they say so, and what satisfies them."""
