"""Closures and contents of store paths from binary caches, without a Nix store."""
