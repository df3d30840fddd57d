#!/usr/bin/env python
"""Write docs/licences.md: the licences of all locked dependencies (`make licences`).

examples:
  scripts/licences.py                      to docs/licences.md
  scripts/licences.py --out licences.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from data_kaist.errors import Failure
from ssd_effnet.cli import shell

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Licences of the dependencies

As the installed packages state them; `make licences` writes this file anew. The project's own licence is in
[LICENSE](../LICENSE). Where torch is the CUDA build, NVIDIA's libraries come with it under NVIDIA's own terms.

| package | version | licence |
|---|---|---|
"""
_LONGEST = 60  # a licence's name; longer is its whole text


def pins() -> dict[str, str]:
    """Name and version of each package in the lock file, and of torch, which is locked nowhere."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    text += "".join(re.findall(r"^torch==.*\n", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE))
    return dict(re.findall(r"^([\w.-]+)==([^\s\\;]+)", text, re.MULTILINE))


def licence(package: Any) -> str:
    """The SPDX expression, else the classifiers, else the first words of the licence field."""
    if expression := package.get("License-Expression"):
        return str(expression)
    classifiers = [c for c in package.get_all("Classifier", []) if c.startswith("License :: ")]
    names = [c.rpartition(" :: ")[2] for c in classifiers if c != "License :: OSI Approved"]
    if names:
        return ", ".join(names)
    stated = (package.get("License") or "").replace("UNKNOWN", "").strip().splitlines()
    return stated[0][:_LONGEST] if stated else "not stated"


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "licences.md", metavar="FILE", help="default: docs/licences.md"
    )
    return parser


@shell.command
def main(argv: Sequence[str] | None = None) -> int:
    path = parser().completed().parse_args(argv).out
    rows, absent = [], []
    for name, version in sorted(pins().items(), key=lambda pin: pin[0].lower()):
        try:
            rows.append(f"| {name} | {version} | {licence(metadata(name))} |\n")
        except PackageNotFoundError:
            absent.append(name)
    # of the two opencv packages one is installed; they are the same code
    if missing := [name for name in absent if not name.startswith("opencv-python")]:
        raise Failure(f"not installed, so that nothing can be said of them: {', '.join(missing)}")
    path.write_text(HEAD + "".join(rows), encoding="utf-8")
    print(f"{path}: {len(rows)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
