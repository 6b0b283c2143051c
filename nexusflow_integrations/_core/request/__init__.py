"""One request: sends a batch of texts, checks the response, and retries after a failure."""
