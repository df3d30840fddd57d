"""Searching a space of settings; needs the packages of ``requirements-search.txt``."""
