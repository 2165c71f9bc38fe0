"""The storage ring: where chunks live, and how they get there."""
