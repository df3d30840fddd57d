"""Adapts the links of the repository's pages to the site.

A link to a file outside ``docs/`` becomes a link to the page made of it, where there is one, or to a copy of the file.
One that leads nowhere stays so, and the strict build stops at it.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "experiments/README.md": "experiments.md", "CONTRIBUTING.md": "contributing.md"}
PAGES["ssd_effnet/detectors/README.md"] = "detector.md"
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
_ROLE = re.compile(r":\w+:<code>~?\.?(?:[\w.]+\.)?(\w+)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add :data:`PAGES` and every other file that a page links to."""
    origins = {f"docs/{file.src_uri}": file.content_string for file in files if file.src_uri.endswith(".md")}
    origins |= {path: (ROOT / path).read_text(encoding="utf-8") for path in PAGES}
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=_relinked(origins[path], path)))
    for origin, text in origins.items():
        for path in {_from_root(link, origin) for link in _LINK.findall(text)}:
            place = _in_site(path)
            if place.startswith("repository/") and (ROOT / path).is_file() and place not in files.src_uris:
                files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links of the pages of ``docs/``."""
    return markdown if page.file.src_uri in PAGES.values() else _relinked(markdown, f"docs/{page.file.src_uri}")


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings are reStructuredText in their roles: ``:meth:`predict``` is shown as ``predict``."""
    return _ROLE.sub(r"<code>\1</code>", html)


def _relinked(text: str, origin: str) -> str:
    return _LINK.sub(lambda link: _in_site(_from_root(link[1], origin)), text)


def _from_root(link: str, origin: str) -> str:
    """A link in the file ``origin`` as a path in the repository."""
    return os.path.normpath(Path(origin).parent / link)


def _in_site(path: str) -> str:
    """Place in the site of a path of the repository. All pages lie at the top."""
    return PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}")
