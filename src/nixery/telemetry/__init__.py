"""Metrics, traces and limits on logs: observers, which builds and requests never wait for."""
