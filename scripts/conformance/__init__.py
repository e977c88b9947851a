"""The conformance suite against another registry: ``make conformance-peer``."""
