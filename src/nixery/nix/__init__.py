"""Nix: what we ask of it, and how a subprocess answers."""
