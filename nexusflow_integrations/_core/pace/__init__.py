"""When a request may be sent: admission, window, limits."""
