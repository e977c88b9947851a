"""The storage: blobs under their digests, and small records.

``opening`` opens it; ``driver`` is the seam, with ``filesystem`` and ``bucket`` below it; ``blobs`` and
``records`` are the two stores above it, and ``leases``, ``catalogue`` and ``copy`` work on those.
"""
