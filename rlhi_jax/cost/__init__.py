"""The cost of a program: its FLOPs and memory in closed form, and the bytes sent between chips."""
