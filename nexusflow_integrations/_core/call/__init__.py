"""One call: its texts in, its vectors out."""
