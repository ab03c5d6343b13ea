"""The method in plain PyTorch: no Lightning, no Hydra. Only backbone.py imports open_clip."""
