"""Speed of detectors, of their stages, and of training and inference on one device."""
