"""What goes wrong around a run, done on purpose: `python -m experiments.faults`."""
