"""The exchange with the API: what to send, when, and what to believe. Imports no framework.

``docs/how-it-works.md`` says which files decide, which are steps without I/O, which are the edge.
"""
