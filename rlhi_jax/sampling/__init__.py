"""Samples text replies to conversations, with a sampler that decodes a fixed number of replies at a time."""
