"""Our server and others, run beside each other on loopback, each ended by its process id."""
