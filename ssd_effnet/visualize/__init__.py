"""Galleries of errors, feature pages, training data, graphs."""
