"""Experiment files: schema, loading, checks."""
