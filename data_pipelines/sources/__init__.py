"""Sources of data: each module is a program that writes preference pairs or, for simulated users, raw conversations."""
