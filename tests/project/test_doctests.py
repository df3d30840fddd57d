"""The examples in docstrings say what is; a class or function name stands once."""

import ast
import doctest
import importlib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("ssd_effnet", "data_kaist")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_there_are_examples() -> None:
    assert {"ssd_effnet.detection.boxes", "ssd_effnet.evaluation.miss_rate", "data_kaist.splits"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


def test_a_name_of_a_class_or_function_stands_once() -> None:
    files = [path for package in ("ssd_effnet", "data_kaist") for path in (ROOT / package).rglob("*.py")]
    counts = Counter(
        node.name
        for path in files
        if path.name != "reference.py"  # loops that the benchmark compares with
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, times in counts.items() if times > 1 and name not in ("main", "parser")] == []
