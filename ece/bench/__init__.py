"""What editing costs: a reference implementation, timed stages, and the command that runs them."""
