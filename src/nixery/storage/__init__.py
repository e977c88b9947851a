"""Blobs under their digests, and small records beside them."""
