"""The data card: statistics of the folders of stages, and their text."""
