"""The core: everything between a list of texts and the HTTP API. Imports no framework.

``docs/how-it-works.md`` describes its folders.
"""
