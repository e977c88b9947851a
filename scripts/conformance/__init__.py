"""The conformance suite against somebody else's registry, behind ``make conformance-peer``."""
