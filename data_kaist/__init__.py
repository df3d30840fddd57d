"""KAIST multispectral pedestrian data: formats, splits, transforms, synthetic twin."""
