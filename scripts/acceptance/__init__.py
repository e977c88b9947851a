"""Installation of the clients for acceptance tests, and the report of their results."""
