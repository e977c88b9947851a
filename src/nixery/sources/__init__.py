"""Package sources: what a tag means, which state it is pinned to, and where the package set of that state is."""
