"""The cost of a program: FLOPs in closed form, and bytes sent between chips."""
