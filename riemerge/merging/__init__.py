"""The pipeline: a recipe planned, run, measured and written."""
