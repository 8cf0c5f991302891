"""The rows of the table of methods, by family; names only, so that printing them loads no torch."""
