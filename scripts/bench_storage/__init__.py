"""How fast each backend is."""
