"""Spaces, quotes, line breaks, markup and letters of other scripts in every name, from reading to ``detect``."""

import json
import os
from pathlib import Path

import pytest
from untrained import write_checkpoint

from data_kaist.images import read_image
from data_kaist.layouts import DataSource
from ssd_effnet import load_detector
from ssd_effnet.inference import detect as detecting
from ssd_effnet.inference.sources import find_sources

ODD = """a b'c"d\n<script>alert(1)</script> %s $(touch x) `id`; ü人ش*[0]""".replace("/", "\u2215")
NO_UTF8 = os.fsdecode(b"caf\xe9")  # a Latin-1 name, as old disks have them


@pytest.fixture(scope="module")
def odd(few_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The few pairs under odd names, in an odd folder."""
    root = tmp_path_factory.mktemp("names") / ODD
    for side in ("visible", "lwir"):
        (root / side / ODD).mkdir(parents=True)
        for path in (few_pairs / side).iterdir():
            (root / side / ODD / f"{path.stem} {ODD}.png").write_bytes(path.read_bytes())
    for split in ("train", "val"):
        content = json.loads((few_pairs / f"{split}.json").read_text())
        for image in content["images"]:
            image["file_name"] = f"visible/{ODD}/{Path(image['file_name']).stem} {ODD}.png"
        (root / f"{split}{ODD}.json").write_text(json.dumps(content))
    return root


def test_frames_of_odd_names_are_read(odd: Path) -> None:
    frames = DataSource("coco", odd).frames(f"train{ODD}.json", modality="early")
    assert len(frames) == 4 and all(ODD in frame.name for frame in frames)
    for frame in frames:
        assert frame.visible is not None and frame.lwir is not None
        assert read_image(frame.visible, colour=True).shape == (96, 128, 3)


def test_odd_names_are_found_drawn_and_written(odd: Path, tmp_path: Path) -> None:
    predictor = load_detector(write_checkpoint(tmp_path / f"{ODD}.ckpt"), device="cpu")
    (tmp_path / NO_UTF8).mkdir()
    picture = next((odd / "visible" / ODD).iterdir())
    (tmp_path / NO_UTF8 / f"{NO_UTF8}.png").write_bytes(picture.read_bytes())
    sources = find_sources([odd / "visible", tmp_path / NO_UTF8])
    out = tmp_path / f"out {ODD}"
    summary = detecting.detect(predictor, sources, out)
    assert summary.images == 7 and not summary.bad
    names = {image["file_name"] for image in json.loads((out / "images.json").read_text())["images"]}
    assert names == {source.name for source in sources}
    assert all((out / name).is_file() for name in names)
