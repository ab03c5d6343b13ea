"""Frozen features, kept on disk between epochs and runs."""
