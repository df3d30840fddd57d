"""HTML templates with escaping; undefined names are errors."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def templates(beside: str) -> Environment:
    """Load the templates in the folder ``templates`` beside a module's ``__file__``."""
    return Environment(
        loader=FileSystemLoader(Path(beside).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
