"""What a program costs: FLOPs in closed form, and bytes sent between chips."""
