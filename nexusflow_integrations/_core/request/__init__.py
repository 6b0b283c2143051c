"""One request: sends a batch of texts, checks the answer, and retries after a failure."""
