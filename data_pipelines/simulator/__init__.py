"""Simulated users: their tastes, requests and wordings, and the comparison of models that reply to them."""
