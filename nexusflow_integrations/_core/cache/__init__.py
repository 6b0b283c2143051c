"""Stores vectors, and the claims on vectors that a process is paying for now."""
