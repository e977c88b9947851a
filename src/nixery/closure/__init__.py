"""Store paths and the graph of their references."""
