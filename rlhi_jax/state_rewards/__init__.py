"""Rewards over the states of a frozen model: mixtures that users weigh differently, and a head that reads personas."""
