"""The device mesh, its sharding rules, and the coordination of processes."""
