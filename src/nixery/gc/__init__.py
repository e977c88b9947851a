"""Garbage collection: deleting what no image in use holds, bounding the records, and finding broken blobs."""
