"""Boxes, matching, losses and what turns a network's outputs into detections."""
