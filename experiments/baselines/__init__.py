"""All methods on one bench, with the demo's small CLIP: no evidence about the methods, but that all of them run."""
