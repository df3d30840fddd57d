"""Prediction, detection on images and videos, export (ONNX, safetensors)."""
