"""Pack files into compressed layers, in one pass. Synchronous code that writes to a sink."""
