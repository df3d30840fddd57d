"""Fixtures that more than one test file needs."""

import gc
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

# imports that take long are in the hooks and fixtures: the process that hands the tests out does without them
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_sessionstart(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", None):
        import torch
        from hypothesis import settings

        # a limit on wall time would make every property a timed test, and the machine is shared
        settings.register_profile("untimed", deadline=None)
        settings.load_profile("untimed")
        torch.set_num_threads(1)  # `make test` runs one process a core; more threads than cores wait for each other


def pytest_collection_finish() -> None:
    """What is imported stays: left out of garbage collection, it saves a tenth of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips experiments on backbones of timm where it is not installed (``make test-timm``)."""
    if find_spec("timm") is not None:
        return
    for item in items:
        path = getattr(item, "callspec", None) and item.callspec.params.get("path")  # type: ignore[attr-defined]
        if isinstance(path, Path) and path.suffix == ".yaml" and "name: timm/" in path.read_text(encoding="utf-8"):
            item.add_marker(pytest.mark.skip(reason="needs timm: make test-timm"))


@pytest.fixture(scope="session", autouse=True)
def coarse_pictures() -> Iterator[Callable[..., None]]:
    """A third of the resolution: drawing and compressing pictures took a tenth of the suite's time."""
    from matplotlib.figure import Figure

    save, coarse = Figure.savefig, {"dpi": 40}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, *target, **more: save(self, *target, **more | coarse))
        yield save


@pytest.fixture
def print_size(coarse_pictures: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of the resolution that users have."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", coarse_pictures)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data that stands beside a developer's checkout; users do not have it."""
    if not SHARED.is_dir():
        pytest.skip("reference data beside the checkout is absent")
    return SHARED


@pytest.fixture(scope="session")
def few_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO data set of six pairs, 96x128, a bright person of 64 pixels in each: train.json (4) and val.json (2).

    five.json has five of them.
    """
    import cv2
    import numpy as np

    root = tmp_path_factory.mktemp("few_pairs")
    random = np.random.default_rng(0)
    for side in ("visible", "lwir"):
        (root / side).mkdir()
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        images, annotations = [], []
        for i in numbers:
            x, y = 10 + 15 * i, 20
            for side in ("visible", "lwir"):
                image = random.integers(0, 80, (96, 128, 3), dtype=np.uint8)
                image[y : y + 64, x : x + 27] += 150
                assert cv2.imwrite(str(root / side / f"{i}.png"), image)
            images.append({"id": i, "file_name": f"visible/{i}.png", "height": 96, "width": 128})
            box = {"bbox": [x, y, 27, 64], "area": 27 * 64, "iscrowd": 0}
            annotations.append({"id": i + 1, "image_id": i, "category_id": 1, **box})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
        (root / f"{split}.json").write_text(json.dumps(content))
    train, val = (json.loads((root / f"{split}.json").read_text()) for split in ("train", "val"))
    five = {key: [*train[key], val[key][0]] for key in ("images", "annotations")}
    (root / "five.json").write_text(json.dumps(train | five))
    return root


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic twin of 30 pairs."""
    from data_kaist.synthetic import write_dataset

    root = tmp_path_factory.mktemp("synthetic")
    write_dataset(root, 30, (512, 640), 0)
    return root
