"""Where packages come from, what a tag means there, and which state of it an image was built from."""
