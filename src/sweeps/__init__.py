"""Sweeps: their trials, what is refused, and their results in one table."""
