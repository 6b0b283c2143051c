"""Stored vectors, and claims on those that a process is paying for."""
