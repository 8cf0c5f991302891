"""Bytes from anyone, read safely, and bytes of ours that appear whole or not at all."""
