"""Data sets: disk layout -> records -> batches. Never imports src."""
