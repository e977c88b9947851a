"""Pushes images to other registries, with the logins of Docker and Podman."""
