"""The KAIST multispectral pedestrian data set as code: formats, splits, transforms and a synthetic twin."""
