"""Decides when a request may be sent: admission queue, window and limits."""
