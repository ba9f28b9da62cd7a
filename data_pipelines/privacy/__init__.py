"""Makes user keys, reads and writes the opt-out list, and finds the data of users who are to be forgotten."""
