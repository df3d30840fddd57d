"""Prediction, detection on images and videos, export (ONNX, pt2)."""
