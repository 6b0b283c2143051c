"""The error for a cache or Redis server that cannot be used at the moment."""


class StoreUnavailable(Exception):  # noqa: N818 - it never leaves the core
    """The store is read-only, full, locked or unreachable; the message is one sentence."""
