"""``make soak``: a mixed load over time, and a check for leaks."""
