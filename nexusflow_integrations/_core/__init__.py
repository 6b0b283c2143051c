"""The exchange with the API: what to send, when, and what to believe. Imports no framework.

Pure decisions: ``settings``, ``texts``, ``tokens``, ``batching``, ``wire``, ``failures``,
``retry``, ``pacing``, ``usage``. Steps without I/O: ``exchange``. The edge: ``transport`` (HTTP),
``store`` (SQLite), ``background`` (the event loop), ``engine`` (which joins them).
"""
