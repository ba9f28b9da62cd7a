"""Asking a model: a local one or an endpoint, with the prompts that it is given."""
