"""One request: a batch of texts sent, its answer checked or retried."""
