"""User keys, opt-outs, and finding and removing every trace of a user."""
