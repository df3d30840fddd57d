"""A file imports only from lower floors, or from its own room."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each file of the package has its floor here, by its own name or its folder's; the longest that fits decides.
_OF_THE_PACKAGE = {
    0: "boxes checkpoints checks config distributed failure files folding keys layers machine memory pages runtime"
    " scaling schema shell stopping structures weights yaml_files",
    1: "metrics models",
    2: "criterion error_analysis evaluation graph_picture models.detector postprocess visualize waiting",
    3: "build cost detector_picture features film heat inspection launch run_directory training",
    4: "benchmark data_view feature_pictures gallery predictor run summary",
    5: "benchmark.onnx detecting export feature_page search study",
}
FLOORS = {f"ssd_effnet.{name}": floor for floor, names in _OF_THE_PACKAGE.items() for name in names.split()}
FLOORS |= {"data_kaist": 1, "scripts": 6}

# a room is a folder whose files may import each other
ROOMS = (
    "ssd_effnet.benchmark",
    "ssd_effnet.metrics",
    "ssd_effnet.gallery",
    "ssd_effnet.models.backbones",
    "ssd_effnet.models.necks",
    "ssd_effnet.search",
    "ssd_effnet.study",
    "data_kaist",
)

FILES = [p for folder in ("ssd_effnet", "data_kaist", "scripts") for p in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


DOOR = "ssd_effnet"  # what people import from the package itself comes from high floors: for scripts, not for parts


def floor_of(module: str) -> int:
    if module == DOOR:
        return FLOORS["scripts"] - 1
    fitting = [p for p in FLOORS if module == p or module.startswith(p + ".")]
    assert fitting, f"{module} has no floor in {Path(__file__).name}"
    return FLOORS[max(fitting, key=len)]


def room_of(module: str) -> str:
    return next((room for room in ROOMS if module == room or module.startswith(room + ".")), module)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("ssd_effnet", "data_kaist", "scripts")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    module = module_of(path)
    floor = floor_of(module)
    for imported in imports_of(path):
        below = floor_of(imported) < floor
        beside_on_the_ground = floor_of(imported) == floor == 0
        assert below or beside_on_the_ground or room_of(imported) == room_of(module), f"{module} imports {imported}"


def test_a_file_without_a_floor_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"ssd_effnet\.attic has no floor"):
        floor_of("ssd_effnet.attic")


def test_every_floor_is_of_a_file() -> None:
    modules = [module_of(path) for path in FILES]
    assert [name for name in FLOORS if not any((m + ".").startswith(name + ".") for m in modules)] == []


def test_the_metrics_know_numpy_only() -> None:
    for path in (ROOT / "ssd_effnet" / "metrics").glob("*.py"):
        assert "torch" not in path.read_text(encoding="utf-8").replace("pytorch", "")
