"""What a store raises that cannot be used here and now."""


class StoreUnavailable(Exception):  # noqa: N818 - it never leaves the core
    """Read-only, full, locked, or gone; the message is one sentence."""
