"""How long things take, compared with the plain way to do them: `python -m experiments.benchmarks.<name>`."""
