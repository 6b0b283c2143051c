"""One call: takes texts and returns vectors."""
