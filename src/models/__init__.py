"""The methods in plain PyTorch: they know neither Lightning nor Hydra, and reach open_clip through `src.clip`."""
