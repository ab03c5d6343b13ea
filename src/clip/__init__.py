"""open_clip: architectures, weights, towers and what is kept of them."""
