"""The HTTP server: routing, handlers, pages and limits."""
