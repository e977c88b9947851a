"""The package index: how fast it is made, what it takes, and how fast it answers."""
