"""The distribution API under ``/v2/``."""
