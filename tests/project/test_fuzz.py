"""Broken files by the thousand: a defined result or one sentence that names the file, never anything else.

Valid files are mutated byte by byte and token by token. The seeds are fixed, so that a failure can be looked at;
``make test-slow`` tries twenty to a hundred times as many.
"""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_kaist.annotations import BBGT_HEADER, read_annotation
from data_kaist.coco import CocoDataset, read_coco
from data_kaist.detections import read_detections
from data_kaist.errors import AnnotationError, DetectionFileError, ImageError
from data_kaist.images import read_image
from data_kaist.structures import Annotations, DetectionTable
from ssd_effnet.config.keys import settings as settings_of
from ssd_effnet.config.loading import ConfigError, ExperimentConfig, load_experiment

SOME = 200
MANY = pytest.param(20_000, marks=pytest.mark.slow)  # of each, by `make test-slow`
HANGS = 20  # seconds: a thousand times what the slowest case takes

XML = b"""<?xml version="1.0"?><annotation><size><width>640</width><height>512</height></size>
<object><name>person</name><bndbox><x>10</x><y>20.5</y><w>30</w><h>60</h></bndbox><occlusion>0</occlusion></object>
<object><name>people</name><bndbox><x>-3</x><y>2</y><w>9</w><h>8</h></bndbox><occlusion>2</occlusion></object>
</annotation>"""
BBGT = f"{BBGT_HEADER}\nperson 10 20 30 60 1 0 0 0 0 0 0\nperson? 600 0 41 512 2 0 0 0 0 1 0\n".encode()
COCO: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "visible/a.png", "height": 512, "width": 640},
        {"id": 3, "im_name": "set06_V000_I00019", "height": 512, "width": 640, "daytime": "day"},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 60], "area": 1800, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [1.5, 2, 3, 4], "height": 4, "occlusion": 1, "ignore": 1},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "cyclist"}],
}
KAIST = b"1,10,20,30,40,0.5\n2,1.5,2.5,3.5,4.5,-7\n\n3,0,0,640,512,1e-3\n"
ROWS = [{"image_id": i, "category_id": 1, "bbox": [10, 20.5, 30, 40], "score": 0.5 - i} for i in range(3)]
RESULTS = json.dumps(ROWS).encode()
DEVKIT = b"person 10 20 30 40 0.5\nperson -1.5 2.5 3.5 4.5 -7\n"
YAML = b"""description: "a \xc3\xa4 question"
changes: [optimizer.lr, input.size]
input: {size: [256, 320], mean: [0.3, 0.3, 0.3, 0.1]}
optimizer:
  lr: 1e-3
  name: adamw
anchors: {sizes: [25, 60.5, 140, 200, 280, 360]}
backbone:
  pretrained: none
trainer:
  epochs: 3
"""
TOKENS = (
    *(b"nan", b"-inf", b"1e999", b"-1e-999", b"1_0", b"0x10", b"9" * 5000, b"1e308", b"-0", b"16777217", b"1e-9"),
    *(b"null", b"true", b"[]", b"{}", b'""', b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\x1b[2J"),
    *(b"[" * 3000, b"{" * 50, b"<a>" * 2000, b"</", b"<!DOCTYPE a [", b'<!ENTITY b "c">', b"&b;", b"<![CDATA[", b"]]>"),
    *(b"&a [*a, *a]", b"!!python/object:os.system", b"!!timestamp x", b"2001-99-99", b"<<: 1", b"? ", b"${a}", b"???"),
    *(b"../../../../etc/passwd", b"/etc/passwd", "\u202e\u0663".encode(), b" ", b"\n", b",", b":", b"'", b'"', b"%s"),
)


@contextmanager
def no_hang() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"one case took more than {HANGS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutated(valid: bytes, rng: np.random.Generator, tokens: tuple[bytes, ...] = TOKENS) -> bytes:
    """The bytes with one to five changes: bits, bytes, pieces cut, doubled or exchanged, and awkward tokens."""
    data = bytearray(valid)
    for _ in range(rng.integers(1, 6)):
        at, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 30))
        piece = data[at : at + length]
        kind = rng.integers(7 if tokens else 5)
        if kind == 0 and piece:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1 and piece:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = piece
        elif kind == 4:
            data = data[:at] if rng.random() < 0.2 else data
        elif kind == 5:
            data[at:at] = tokens[rng.integers(len(tokens))]
        elif kind == 6:
            data[at : at + length] = tokens[rng.integers(len(tokens))]
    return bytes(data)


def possible(annotations: Annotations) -> None:
    """What a reader lets through can be true, also in the float32 in which it is kept."""
    boxes, (height, width) = annotations.boxes_xyxy, annotations.size
    assert np.isfinite(boxes).all() and np.isfinite(annotations.height).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all() and height >= 1 and width >= 1
    assert (boxes[:, :2] < np.float32([width, height])).all() and (boxes[:, 2:] > 0).all()
    assert set(annotations.occlusion.tolist()) <= {0, 1, 2}


def possible_table(table: DetectionTable) -> None:
    assert np.isfinite(table.boxes_xyxy).all() and np.isfinite(table.scores).all()
    assert (table.boxes_xyxy[:, 2:] > table.boxes_xyxy[:, :2]).all()
    assert ((table.image_index >= 0) & (table.image_index < 3)).all()


def possible_data(data: CocoDataset) -> None:
    assert len(data.images) == len(data.annotations) and data.person_categories
    for annotations in data.annotations:
        possible(annotations)


def possible_experiment(experiment: ExperimentConfig) -> None:
    for value in settings_of(experiment).values():
        numbers = value if isinstance(value, list) else [value]
        assert all(np.isfinite(n) for n in numbers if isinstance(n, int | float))


def one_sentence(error: Exception, file: Path) -> None:
    """It names the file, and a terminal can show it as it is."""
    text = str(error)
    assert file.name in text and text.isprintable() and len(text) < 2500, text
    text.encode("utf-8")


def try_files(
    valid: bytes,
    file: Path,
    read: Callable[[Path], Any],
    check: Callable[[Any], None],
    kind: type[Exception],
    cases: range,
    tokens: tuple[bytes, ...] = TOKENS,
) -> tuple[int, int]:
    """Read so many mutations of a valid file; returns how many were read and how many refused."""
    file.write_bytes(valid)
    check(read(file))
    good = 0
    for seed in cases:
        data = mutated(valid, np.random.default_rng(seed), tokens)
        file.write_bytes(data)
        try:
            with no_hang():
                result = read(file)
        except kind as error:
            one_sentence(error, file)
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}: {data[:3000]!r}") from error
        check(result)
        good += 1
    return good, len(cases) - good


READERS: dict[str, tuple[bytes, str, Callable[[Path], Any], Callable[[Any], None], type[Exception]]] = {
    "xml": (XML, "I1.xml", lambda p: read_annotation(p, "set06/V000/I00001"), possible, AnnotationError),
    "bbgt": (BBGT, "I1.txt", lambda p: read_annotation(p, "set06/V000/I00001"), possible, AnnotationError),
    "coco": (json.dumps(COCO).encode(), "a.json", read_coco, possible_data, AnnotationError),
    "kaist": (KAIST, "d.txt", lambda p: read_detections(p, 3), possible_table, DetectionFileError),
    "results": (RESULTS, "d.json", lambda p: read_detections(p, 3), possible_table, DetectionFileError),
    "devkit": (
        DEVKIT,
        "set00_V000_I00001.txt",
        lambda p: read_detections(p.parent, 3, names=["set00/V000/I00001"]),
        possible_table,
        DetectionFileError,
    ),
    "yaml": (YAML, "e.yaml", load_experiment, possible_experiment, ConfigError),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("cases", [SOME, MANY])
def test_mutated_files(name: str, cases: int, tmp_path: Path) -> None:
    valid, file, read, check, kind = READERS[name]
    if name == "yaml":  # some forty times as slow as the others
        cases = max(cases // 10, 60)
    good, refused = try_files(valid, tmp_path / file, read, check, kind, range(cases))
    assert good and refused  # a mutation that always hits says nothing of the others
    print(f"{name}: {good:,} read, {refused:,} refused")


GREY = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (24, 32), np.uint8), (5, 5), 0)
COLOUR = np.dstack([GREY, GREY[::-1], 255 - GREY])
SUFFIXES = (".jpg", ".png", ".bmp", ".tif", ".webp")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("cases", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_images(suffix: str, cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_kaist.images.MAX_PIXELS", 1_000_000)  # 100 megapixels would take their time

    def check(image: np.ndarray) -> None:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size <= 3_000_000

    def read(path: Path) -> np.ndarray:
        return read_image(path, colour=True)

    for picture in (GREY, COLOUR):
        valid = cv2.imencode(suffix, picture)[1].tobytes()
        good, refused = try_files(valid, tmp_path / f"a{suffix}", read, check, ImageError, range(cases), ())
        assert good and refused
        print(f"{suffix}: {good:,} read, {refused:,} refused")
