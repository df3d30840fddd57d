"""Experiments: every key with its type and default, and how a file becomes one."""
