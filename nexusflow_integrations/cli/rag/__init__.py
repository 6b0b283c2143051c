"""Answers questions about a corpus with each framework: the code behind ``nexusflow``.

- `corpus`: the texts to search: docstrings of the standard library, reference topics, a folder.
- `questions`: fixed questions with accepted answers, to measure retrieval.
- `keywords`: BM25, the baseline that needs no model.
- `with_langchain`, `with_llama_index`, `with_chroma`: the same pipeline in each framework, in one
  small file each, written as a user of that framework alone would write it.
- `answer`: an answer from the passages found: quoted, or written by a chat model.
- `endpoint`: the service if there is a key, else the local server.
- `indexes`: indexes on disk, so that a second run does not pay for the passages again.

Importing this package imports none of these modules.
"""
