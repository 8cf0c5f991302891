"""Files and folders, read safely and written whole or not at all."""
