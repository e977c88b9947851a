"""Compare rules for layers by the bytes that a fleet pulls and a registry stores."""
