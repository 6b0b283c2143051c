"""What was paid for already, and who is paying now."""
