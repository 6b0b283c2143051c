"""The address of a Redis server and the connection to it."""
