"""How fast we are, beside nginx and docker-registry: what is behind ``make bench``."""
