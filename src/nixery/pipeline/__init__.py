"""From an image request to a stored manifest."""
