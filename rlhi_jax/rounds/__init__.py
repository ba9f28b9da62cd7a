"""One round of the loop: the state of its parts, the time that they took, and its results in words."""
