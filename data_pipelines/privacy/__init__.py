"""User keys, the opt-out list, and how all traces of a user are found and removed."""
