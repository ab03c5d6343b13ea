"""Studies on top of src: one folder each."""
