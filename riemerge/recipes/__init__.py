"""What was asked: recipes in YAML or words, and what they say of one module."""
