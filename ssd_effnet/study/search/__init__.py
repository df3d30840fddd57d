"""Searching a space of settings; needs ``pip install '.[search]'``."""
