"""The making of the demo backbone: a CLIP of a toy world, small enough to live in the repository."""
