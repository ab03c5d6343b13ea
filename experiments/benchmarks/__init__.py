"""Programs that measure: `python -m experiments.benchmarks.<name>` prints a table and writes results/<name>.json."""
