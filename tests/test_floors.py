"""A file imports only from lower floors, or from its own room."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# the longest prefix that fits decides; a room is a folder whose files may import each other
FLOORS: dict[str, int] = {
    "ssd_effnet": 0,  # structures, boxes, layers, config, scaling, weights: whatever is not named below
    "ssd_effnet.models": 1,
    "ssd_effnet.metrics": 1,
    "data_kaist": 1,
    "ssd_effnet.models.detector": 2,
    "ssd_effnet.criterion": 2,
    "ssd_effnet.postprocess": 2,
    "ssd_effnet.visualize": 2,
    "ssd_effnet.graph_picture": 2,
    "ssd_effnet.features": 3,
    "ssd_effnet.heat": 3,
    "ssd_effnet.evaluation": 2,
    "ssd_effnet.error_analysis": 2,
    "ssd_effnet.cost": 3,
    "ssd_effnet.film": 3,
    "ssd_effnet.detector_picture": 3,
    "ssd_effnet.benchmark": 4,
    "ssd_effnet.benchmark.onnx": 5,  # runs a trained detector
    "ssd_effnet.build": 3,
    "ssd_effnet.training": 3,
    "ssd_effnet.run_directory": 3,
    "ssd_effnet.launch": 3,
    "ssd_effnet.waiting": 2,
    "ssd_effnet.run": 4,
    "ssd_effnet.gallery": 4,
    "ssd_effnet.predictor": 4,
    "ssd_effnet.feature_pictures": 4,
    "ssd_effnet.data_view": 4,
    "ssd_effnet.inspection": 3,
    "ssd_effnet.summary": 4,
    "ssd_effnet.detecting": 5,
    "ssd_effnet.export": 5,
    "ssd_effnet.feature_page": 5,
    "ssd_effnet.search": 5,
    "ssd_effnet.study": 5,
    "scripts": 6,
}
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
    return FLOORS[max((p for p in FLOORS if module == p or module.startswith(p + ".")), key=len)]


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
    for imported in imports_of(path):
        below = floor_of(imported) < floor_of(module)
        beside_on_the_ground = floor_of(imported) == floor_of(module) == 0
        assert below or beside_on_the_ground or room_of(imported) == room_of(module), f"{module} imports {imported}"


def test_the_metrics_know_numpy_only() -> None:
    for path in (ROOT / "ssd_effnet" / "metrics").glob("*.py"):
        assert "torch" not in path.read_text(encoding="utf-8").replace("pytorch", "")
