"""Start the best-known programs of Debian's package set in images: ``python -m scripts.debian_smoke``."""
