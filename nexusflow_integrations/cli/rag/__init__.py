"""Question answering over a corpus with each framework: the code behind ``nexusflow``.

- `corpus`: the texts to search: docstrings of the standard library, reference topics, a folder.
- `questions`: fixed questions with accepted answers, to measure retrieval.
- `keywords`: BM25, the baseline without a model.
- `with_langchain`, `with_llama_index`, `with_chroma`: the same pipeline in each framework, one
  small file each, written as one would write it with that framework alone.
- `answer`: an answer from the passages found: quoted, or written by a chat model.
- `endpoint`: the service if there is a key, else the embedded server.
- `indexes`: indexes on disk, so that a second run costs nothing.

Importing this package imports none of them.
"""
