"""``make soak``: a mixed load for a while, and whether anything grew."""
