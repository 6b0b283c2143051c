"""Decides when a request may be sent: queue, rate limits and limit on requests in flight."""
