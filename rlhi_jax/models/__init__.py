"""The decoder, its parts and its checkpoints; models are pure functions of (params, batch)."""
