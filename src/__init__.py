"""CLIP-AD as a PyTorch Lightning framework: SDP and SDP+ (arXiv 2311.00453)."""
