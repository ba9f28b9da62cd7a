"""Evaluation: persona conditions, confidence intervals, rewards and their calibration, and tables of results."""
