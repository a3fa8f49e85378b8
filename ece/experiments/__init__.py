"""Runs experiments one by one or as a grid, stores what they measured, and is the command `ece`."""
