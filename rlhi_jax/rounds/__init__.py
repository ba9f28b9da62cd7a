"""One round of `rlhi_jax.loop`: its settings, the state of its parts, their durations, and its results in words."""
