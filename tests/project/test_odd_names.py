"""Spaces, quotes, line breaks, markup and letters of other scripts in every name, from training to the pages."""

import json
import os
from pathlib import Path

import pytest
from commands import command
from untrained import LITE0, SMALL, write_checkpoint

from data_kaist.images import read_image
from data_kaist.layouts import DataSource
from ssd_effnet import load_detector
from ssd_effnet.config.loading import load_experiment, save_experiment
from ssd_effnet.inference import detect as detecting
from ssd_effnet.inference.sources import find_sources
from ssd_effnet.training.run_directory import RunDirectory

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
    summary = detecting.detect(predictor, sources, out, echo=lambda line: None)
    assert summary.images == 7 and not summary.bad
    names = {image["file_name"] for image in json.loads((out / "images.json").read_text())["images"]}
    assert names == {source.name for source in sources}
    assert all((out / name).is_file() for name in names)


@pytest.mark.slow
def test_from_training_to_the_pages(odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: object) -> str:
        done = command(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    monkeypatch.chdir(tmp_path)
    settings = ("data.kind=coco", "trainer.epochs=1", "trainer.panel_images=1", "trainer.monitor=val/loss_total")
    e = load_experiment(LITE0, [*SMALL, *settings])
    e.data.root, e.data.train, e.data.val, e.data.test = (
        str(odd),
        f"train{ODD}.json",
        f"val{ODD}.json",
        f"val{ODD}.json",
    )
    e.trainer.test_checkpoint, e.name = "last", ""
    file = tmp_path / f"{ODD}.yaml"
    save_experiment(e, file)
    assert load_experiment(file).data.root == str(odd)
    out = tmp_path / f"runs {ODD}"
    run("train", file, "--out", out)
    directory = RunDirectory(out / ODD / "seed0")
    assert directory.results()["test"]["images"] == 2
    truth = odd / f"val{ODD}.json"
    json_file = tmp_path / f"scores {ODD}.json"
    line = ("--annotations", truth, "--detections", directory.detections_file, "--json", json_file)
    said = run("evaluate", *line)
    assert json.loads(json_file.read_text()) and "miss rate" in said.lower()
    run("visualize", "errors", directory.path, "--out", tmp_path / f"errors {ODD}")
    run("visualize", "curves", directory.path, "--out", tmp_path / f"curves {ODD}.png")
    pages = list(tmp_path.rglob("*.html"))
    assert pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script>alert" not in text
    run("detect", directory.path, odd / "visible", "--out", tmp_path / f"found {ODD}")
    study = tmp_path / f"study {ODD}"
    run("study", "run", file, "--out", study)
    run("study", "report", study)
    report = (study / "report" / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in report and not (tmp_path / "x").exists()  # nobody touched it
