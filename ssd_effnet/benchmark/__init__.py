"""Speed of detectors, of their stages and of their training."""
