"""Asks a local model or an endpoint for replies and judgements, and contains the prompts for it."""
