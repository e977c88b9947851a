"""Pages for people: made on the server, and readable without a script."""
