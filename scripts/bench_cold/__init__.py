"""How long the first request for an image takes, and for what."""
