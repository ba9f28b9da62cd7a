"""Data sources: programs that write preference pairs or, for simulated users, raw conversations."""
