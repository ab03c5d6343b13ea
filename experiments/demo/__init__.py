"""The first run: SDP and SDP+ on the demo data, side by side. `make demo`."""
