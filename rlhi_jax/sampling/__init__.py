"""Samples text replies to conversations, with a sampler that decodes in a fixed number of slots."""
