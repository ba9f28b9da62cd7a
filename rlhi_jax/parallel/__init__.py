"""The device mesh with its sharding rules, and the processes of a pod."""
