"""Boxes, matching, losses and postprocessing."""
