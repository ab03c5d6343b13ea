"""A run: its folder, what it was, its objects and its results."""
