"""From files to a compressed layer, in one pass. Synchronous code that writes to a sink it is given."""
