"""Stored vectors, and claims on vectors that a process is paying for now."""
