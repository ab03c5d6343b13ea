"""Two sweeps of the demo: how much a seed matters, and what a search on held-out categories finds."""
