"""Sampling settings, the slot-based sampler, and text replies to conversations."""
