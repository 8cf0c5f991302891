"""Run records in words: verdicts, tables, the model card."""
