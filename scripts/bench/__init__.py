"""``make bench``: compare the speed with nginx and docker-registry."""
