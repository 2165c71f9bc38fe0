"""The peer: composes the ring, the metadata and the gateway into one process."""
