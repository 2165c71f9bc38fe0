"""What clients talk to: the HTTP API, and the client for it."""
