"""The data card: statistics of what stages wrote, and their text."""
