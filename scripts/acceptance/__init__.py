"""What surrounds the acceptance tests: installing clients, telling results."""
