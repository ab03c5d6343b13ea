"""What a run says about itself and its results."""
