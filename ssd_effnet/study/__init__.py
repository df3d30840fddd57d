"""Experiments compared: planned, run, and told how sure."""
