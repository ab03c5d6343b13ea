"""Does a calibration keep its promise? See README.md."""
