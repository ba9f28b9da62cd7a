"""Simulated users: their tastes, requests and wordings, and the evaluation of policies on them."""
