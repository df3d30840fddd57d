"""Files from elsewhere: nothing in them is run, fetched or expanded, and none leads out of its folder."""

import json
import pickle
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from untrained import write_checkpoint

from data_kaist.annotations import parse_xml
from data_kaist.coco import read_coco
from data_kaist.errors import AnnotationError, DataError, ImageError, one_line
from data_kaist.images import read_image
from data_kaist.layouts import DataSource
from ssd_effnet.config.loading import ConfigError, load_experiment
from ssd_effnet.inference.predictor import load_detector
from ssd_effnet.models.weights import WeightsError, read_state_dict

ROOT = Path(__file__).parents[2]


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("place", ["beside the weights", "instead of a tensor", "a bare pickle"])
def test_code_in_a_checkpoint_is_not_run(place: str, tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / "bad.ckpt"
    content = torch.load(write_checkpoint(tmp_path / "good.ckpt"), weights_only=True)
    if place == "beside the weights":
        content["callbacks"] = Bomb(trace)
    elif place == "instead of a tensor":
        content["state_dict"][next(iter(content["state_dict"]))] = Bomb(trace)
    torch.save(content, file)
    if place == "a bare pickle":
        file.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(WeightsError, match=r"bad\.ckpt.*could run code"):
        load_detector(file, device="cpu")
    with pytest.raises(WeightsError, match=r"bad\.ckpt is not read: .*more than tensors"):
        read_state_dict(file)
    assert not trace.exists()
    if place == "a bare pickle":
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert trace.exists()  # it is a bomb


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
XML_BOMBS = {
    "a billion laughs": f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><annotation>&l9;</annotation>',
    "quadratic": f'<!DOCTYPE a [<!ENTITY b "{"b" * 100_000}">]><annotation>{"&b;" * 10_000}</annotation>',
    "a file": '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
    "a parameter": '<!DOCTYPE a [<!ENTITY % b SYSTEM "{address}">%b;]><annotation></annotation>',
    "an address": '<!DOCTYPE a [<!ENTITY b SYSTEM "{address}">]><annotation>&b;</annotation>',
    "a document type": '<!DOCTYPE annotation SYSTEM "{address}"><annotation></annotation>',
}


@pytest.fixture(scope="module")
def listener() -> Iterator[tuple[str, list[str]]]:
    """An address, and the paths that were asked for there."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/evil.dtd", asked
        server.shutdown()


@pytest.mark.parametrize("name", XML_BOMBS)
def test_xml_is_neither_expanded_nor_fetched(name: str, listener: tuple[str, list[str]]) -> None:
    address, asked = listener
    tracemalloc.start()
    try:
        if name == "a document type":  # names a file of rules, which no reader asks for
            assert len(parse_xml(XML_BOMBS[name].replace("{address}", address), "I1.xml")) == 0
        else:
            with pytest.raises(AnnotationError, match=r"I1\.xml: not readable as XML"):
                parse_xml(XML_BOMBS[name].replace("{address}", address), "I1.xml")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert not asked


def test_yaml_aliases_are_not_expanded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "bomb.yaml").write_text("\n".join([*lines, "description: *a9"]))
    with pytest.raises(ConfigError, match=r"bomb\.yaml: \*a0: aliases are not read"):
        load_experiment(tmp_path / "bomb.yaml")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" + "9" * 5000 + "]"])
def test_json_too_deep_or_too_long_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text(text)
    with pytest.raises(AnnotationError, match=r"deep\.json: is not valid JSON"):
        read_coco(tmp_path / "deep.json")


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "data", [png_of(10_001, 10_000), png_of(200_000, 100_000), jpeg_of(65_535, 65_535)], ids=["just", "png", "jpeg"]
)
def test_huge_images_are_refused_before_they_are_decoded(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(data)
    with pytest.raises(ImageError, match=r"huge: \d+x\d+ pixels are more than the 100,000,000 that are read"):
        read_image(tmp_path / "huge", colour=True)


def test_a_piece_of_a_png_cannot_take_memory_that_the_file_has_not(tmp_path: Path) -> None:
    data = png_of(8, 8)
    at = data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:at] + struct.pack(">I", 0xF0000000) + data[at + 4 :])
    with pytest.raises(ImageError, match=r"a\.png: the image is truncated"):
        read_image(tmp_path / "a.png", colour=True)


OUTSIDE = ["../secret.png", "/{outside}/secret.png", "visible/../../secret.png", "..", "/"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_coco_file_names_no_image_outside_its_root(name: str, few_pairs: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes((few_pairs / "visible" / "0.png").read_bytes())
    name = name.replace("/{outside}", str(tmp_path))
    content = json.loads((few_pairs / "train.json").read_text())
    content["images"] = content["images"][:1]
    content["annotations"] = content["annotations"][:1]
    content["images"][0]["file_name"] = name
    (root / "train.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"train\.json: image 0 has the file name .* which leads out of"):
        DataSource("coco", root).frames("train.json")
    skipped: list[tuple[str, str]] = []
    with pytest.raises(DataError, match="leads out of"):  # nothing else is in the split
        DataSource("coco", root).frames("train.json", skipped=skipped)
    assert len(skipped) == 1


@pytest.mark.parametrize("name", ["\ud800.png", "a\nb.png"])
def test_names_that_no_file_has_are_missing_files(name: str, few_pairs: Path, tmp_path: Path) -> None:
    content = json.loads((few_pairs / "train.json").read_text())
    content["images"][0]["file_name"] = name
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(ImageError, match="missing, the visible image") as caught:
        DataSource("coco", tmp_path).frames("train.json")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", "a/b", "..", ".", "''", "x" * 300])
def test_a_run_stays_below_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(f"name: {name}\n")
    if name == "''":  # no name: the file's
        assert load_experiment(tmp_path / "e.yaml").name == "e"
        return
    with pytest.raises(ConfigError, match=r"e\.yaml: key `name`: must be the name of a folder"):
        load_experiment(tmp_path / "e.yaml")


def test_one_line() -> None:
    assert one_line("größer 人 'a' \"b\"") == "größer 人 'a' \"b\""
    assert one_line("a\nb\x1b[2J\udcff\u202e") == "a\\nb\\x1b[2J\\udcff\\u202e"
    assert len(one_line("x" * 10**6)) < 2500
