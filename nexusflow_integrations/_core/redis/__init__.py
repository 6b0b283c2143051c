"""Where a Redis server is, and how it is spoken to."""
