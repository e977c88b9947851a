"""Nixery and other servers on the loopback interface, each a process that is ended by its id."""
