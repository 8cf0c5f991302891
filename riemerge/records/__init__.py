"""What was done, as data that can be written, read again, and shown."""
