"""The duration of the first request for an image whose packages are in a binary cache."""
