"""``python -m nixery``."""

from nixery.cli import main

main()
