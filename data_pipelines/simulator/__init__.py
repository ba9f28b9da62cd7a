"""Simulated users: their tastes, requests and wordings, and how the evaluation compares models on them."""
