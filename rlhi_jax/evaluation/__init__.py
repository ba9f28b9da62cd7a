"""Evaluation: persona conditions, confidence intervals, and tables of results."""
