"""SSD pedestrian detectors as experiments: backbone, adapter, neck and recipe, each a small difference."""
