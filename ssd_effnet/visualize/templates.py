"""HTML from templates, in which everything is escaped and a name that is not there is an error."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def templates(beside: str) -> Environment:
    """The templates in the folder ``templates`` beside a module, whose ``__file__`` is given."""
    return Environment(
        loader=FileSystemLoader(Path(beside).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
