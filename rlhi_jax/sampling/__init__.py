"""Sampling: its settings, the slot-based sampler, and replies to conversations as text."""
