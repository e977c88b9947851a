"""The speed of each storage backend."""
