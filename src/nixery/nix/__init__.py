"""Nix: evaluation, realisation and closures, fetching, and the lives of its processes. Only this package runs Nix and reads its answers."""
