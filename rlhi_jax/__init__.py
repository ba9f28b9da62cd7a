"""RLHI, Reinforcement Learning from Human Interaction (arXiv 2509.25137), in JAX."""
