"""The core: everything between a list of texts and the HTTP API. The core imports no framework.

``docs/how-it-works.md`` describes the folders.
"""
