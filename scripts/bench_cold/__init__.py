"""The duration of the first request for an image, by step."""
