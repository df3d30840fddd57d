"""Pages of errors and features, training data, curves, calibration."""
