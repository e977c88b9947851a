"""Everything that a client verifies: digests, descriptors, configs and manifests, as exact bytes."""
