"""Asks a local model or an endpoint for replies and judgements. This package also contains the prompts."""
