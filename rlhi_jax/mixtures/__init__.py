"""Rewards as mixtures: a few linear rewards over a frozen model's states, which each user weighs differently."""
