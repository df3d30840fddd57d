"""From a file to pixels: orientation tags, more than 8 bits, damaged films, what is left out, films for browsers."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import command
from PIL import Image, ImageOps
from untrained import SMALL as SMALLEST
from untrained import write_checkpoint

from data_kaist.dataset import doubts_of, read_pair
from data_kaist.errors import DataError, Doubt, ImageError
from data_kaist.images import NOTE, Reading, kind_of, read_image
from data_kaist.layouts import DataSource, Frame
from data_kaist.statistics import lwir_quantiles
from data_kaist.structures import Annotations
from ssd_effnet import load_detector
from ssd_effnet.build import build_dataset
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.drawing import as_rgb
from ssd_effnet.inference.detect import detect
from ssd_effnet.inference.export import describe
from ssd_effnet.inference.predictor import Predictor
from ssd_effnet.inference.sources import Still, Video, find_sources, listed, read_video
from ssd_effnet.inference.video import AnnotatedVideos
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import RunDirectory
from ssd_effnet.visualize.data import write_data_view
from ssd_effnet.visualize.inspection import inspect

ROOT = Path(__file__).parents[2]
RANDOM = np.random.default_rng(0)
ORIENTATION = 0x0112
UPRIGHT = Reading(orientation="follow")


def tagged(path: Path, tag: int, pixels: np.ndarray) -> Path:
    """A file of these pixels with an orientation tag; the ending chooses the format, ``.webp`` without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ORIENTATION] = tag
    if path.suffix == ".tif":
        Image.fromarray(pixels).save(path, tiffinfo={ORIENTATION: tag})
    else:
        Image.fromarray(pixels).save(path, exif=exif, quality=95, lossless=path.suffix == ".webp")
    return path


def coco(root: Path, files: list[tuple[str, tuple[int, int]]], split: str = "train") -> Path:
    """A JSON file of images with one person each; sizes are (height, width)."""
    images = [{"id": i, "file_name": name, "height": h, "width": w} for i, (name, (h, w)) in enumerate(files)]
    boxes = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [4, 4, 24, 70]} for i in range(len(files))]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "person"}]}
    (root / f"{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def visible(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load_detector(write_checkpoint(tmp_path_factory.mktemp("c") / "visible.ckpt"), device="cpu")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_a_tag_is_followed_ignored_or_never_looked_at(suffix: str, tag: int, tmp_path: Path) -> None:
    stored = cv2.resize(RANDOM.integers(0, 256, (3, 5, 3), dtype=np.uint8), (60, 40), interpolation=cv2.INTER_LINEAR)
    path = tagged(tmp_path / f"a{suffix}", tag, stored)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    note = np.zeros(1, NOTE)
    close = {"atol": 20 if suffix == ".jpg" else 0}
    np.testing.assert_allclose(read_image(path, colour=True, reading=UPRIGHT, note=note).astype(int), upright, **close)
    assert (note["tag"][0], bool(note["turned"][0])) == ((0, False) if tag == 1 else (tag, True))
    ignoring = Reading(orientation="ignore")
    np.testing.assert_allclose(read_image(path, colour=True, reading=ignoring).astype(int), stored, **close)
    if tag > 4:  # only upright it has this size
        fitting = read_image(path, colour=True, reading=ignoring, size=(60, 40)).astype(int)
        np.testing.assert_allclose(fitting, upright, **close)
        kept = read_image(path, colour=True, reading=UPRIGHT, size=(40, 60)).astype(int)
        np.testing.assert_allclose(kept, stored, **close)


def test_the_predictor_and_its_pictures_are_upright(visible: Predictor, tmp_path: Path) -> None:
    stored = RANDOM.integers(0, 256, (72, 104, 3), dtype=np.uint8)
    turned, straight = tagged(tmp_path / "in" / "a.png", 6, stored), tmp_path / "b.png"
    Image.fromarray(np.rot90(stored, -1)).save(straight)
    of_tag, of_straight = visible.predict([turned, straight], score=0.05)
    assert of_tag.size == (104, 72) and len(of_tag)
    np.testing.assert_allclose(of_tag.boxes_xyxy, of_straight.boxes_xyxy, atol=1e-3)
    detect(visible, find_sources([tmp_path / "in"]), tmp_path / "out")
    (entry,) = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert (entry["height"], entry["width"]) == (104, 72)
    assert cv2.imread(str(tmp_path / "out" / "a.png")).shape[1] == 72


def test_annotated_images_stay_as_stored_unless_their_size_fits_one_form(tmp_path: Path) -> None:
    stored, square = np.zeros((80, 100, 3), np.uint8), np.zeros((90, 90, 3), np.uint8)
    for side in (stored, square):
        side[:10, :10] = 255  # at the top left as stored
    tagged(tmp_path / "sideways.png", 6, stored)
    tagged(tmp_path / "square.png", 6, square)
    tagged(tmp_path / "upside.png", 3, stored)
    Image.fromarray(stored).save(tmp_path / "plain.png")
    sizes = [("plain.png", (80, 100)), ("sideways.png", (100, 80)), ("square.png", (90, 90)), ("upside.png", (80, 100))]
    root = coco(tmp_path, sizes)

    def corners(frames: list) -> list[tuple[bool, bool]]:  # whether white is at the top, whether at the left
        images = [read_pair(frame, "visible")[0] for frame in frames]
        return [(bool(i[:10].any()), bool(i[:, :10].any())) for i in images]

    for orientation, turned, wanted in (
        ("ignore", 1, [(True, True), (True, False), (True, True), (True, True)]),
        ("follow", 3, [(True, True), (True, False), (True, False), (False, False)]),
    ):
        frames = DataSource("coco", root, reading=Reading(orientation=orientation)).frames("train.json")
        assert corners(frames) == wanted
        (sentence,) = doubts_of(frames).values()
        assert "3 of 4 images" in sentence and "sideways.png" in sentence and "plain" not in sentence
        assert f"{turned} are turned" in sentence and f"{3 - turned} stay" in sentence and orientation in sentence
    never = DataSource("coco", root).frames("train.json")
    with pytest.raises(ImageError, match=r"sideways\.png: 100x80 pixels, but annotated for 80x100"):
        read_pair(never[1], "visible")


def test_kaist_is_never_turned(synthetic: Path) -> None:
    frames = DataSource("kaist", synthetic, reading=UPRIGHT).frames("test-all-20")
    assert {frame.reading.orientation for frame in frames} == {"never"}


def thermal(path: Path, kind: str) -> np.ndarray:
    """One scene as a camera's own grey levels, and in the file as it stores them."""
    scene = np.tile(np.arange(1900) % 1900, 6)[: 96 * 116].reshape(96, 116)
    stored = {
        "14 bits": (scene + 7000).astype(np.uint16),
        "8 bits": (scene * 255 // 1899).astype(np.uint16),
        "celsius": (scene / 100 + 10).astype(np.float32),
        "kelvin": (scene / 100 + 283.15).astype(np.float32),
        "signed": (scene - 400).astype(np.int16),
    }[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), stored)
    return scene * 255 / 1899


RANGES = {
    "14 bits": (7000, 8899), "8 bits": (0, 255), "celsius": (10, 28.99), "kelvin": (283.15, 302.14),
    "signed": (-400, 1499),
}  # fmt: skip


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_all_grey_levels_of_a_range_arrive(kind: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".png" and kind not in ("14 bits", "8 bits"):
        pytest.skip("PNG has no such values")
    grey = thermal(tmp_path / f"a{suffix}", kind)
    image = read_image(tmp_path / f"a{suffix}", colour=False, reading=Reading(RANGES[kind]))
    assert image.dtype == np.uint8 and len(np.unique(image)) == 256
    np.testing.assert_allclose(image, grey, atol=1.01)


def test_without_a_range_the_high_byte_is_used_and_said(tmp_path: Path) -> None:
    thermal(tmp_path / "lwir" / "a.png", "14 bits")
    thermal(tmp_path / "lwir" / "b.png", "8 bits")
    (tmp_path / "visible").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((96, 116, 3), np.uint8)).save(tmp_path / "visible" / f"{name}.png")
        coco(tmp_path, [(f"visible/{name}.png", (96, 116))], name)
    for name, levels, words in (
        ("a", range(27, 35), "7000 to 8899 become 27 to 34"),
        ("b", [0], "0 to 255 become 0 to 0"),
    ):
        frames = DataSource("coco", tmp_path).frames(f"{name}.json", modality="early")
        image = read_pair(frames[0], "early")[1]
        assert image is not None and set(np.unique(image)) <= set(levels)
        assert set(np.unique(as_rgb(image))) == set(np.unique(image))  # pictures show what the network gets
        (sentence,) = doubts_of(frames).values()
        assert f"lwir/{name}.png" in sentence and "high byte" in sentence and words in sentence
        assert "data.lwir_range" in sentence
    thermal(tmp_path / "c.tif", "celsius")
    with pytest.raises(ImageError, match=r"c\.tif: holds float32 values from 10 to 28\.99; data\.lwir_range"):
        read_image(tmp_path / "c.tif", colour=False)


def test_values_that_are_no_numbers_count_as_clipped(tmp_path: Path) -> None:
    values = np.full((10, 10), 20, np.float32)
    values[:3] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    note = np.zeros(1, NOTE)
    image = read_image(tmp_path / "a.tif", colour=False, reading=Reading((10, 30)), note=note)
    assert (image[:3] == 0).all() and (image[3:] == 128).all()
    assert (note["low"].item(), note["high"].item(), note["below"].item()) == (20, 20, pytest.approx(0.3))
    Image.fromarray(np.full((10, 10), np.nan, np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(ImageError, match=r"b\.tif: holds no finite value"):
        read_image(tmp_path / "b.tif", colour=False, reading=Reading((10, 30)))


def test_clipped_shares_and_8_bits_beside_a_range_are_said(tmp_path: Path) -> None:
    (tmp_path / "lwir").mkdir()
    (tmp_path / "visible").mkdir()
    pixels = np.full((100, 100), 5000, np.uint16)
    pixels[:20], pixels[20:25] = 3000, 9500
    Image.fromarray(pixels).save(tmp_path / "lwir" / "a.png")
    Image.fromarray(np.full((100, 100), 77, np.uint8)).save(tmp_path / "lwir" / "b.png")
    for name in "ab":
        Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(tmp_path / "visible" / f"{name}.png")
    root = coco(tmp_path, [(f"visible/{name}.png", (100, 100)) for name in "ab"])
    frames = DataSource("coco", root, reading=Reading((4000, 9000))).frames("train.json", modality="lwir")
    images = [read_pair(frame, "lwir")[1] for frame in frames]
    assert set(np.unique(images[0])) == {0, 51, 255} and set(np.unique(images[1])) == {77}
    said = doubts_of(frames)
    assert "20.00 % of" in said["range"] and "5.00 % above" in said["range"]
    assert "1 of 2 LWIR images have 8 bits" in said["depth"] and "lwir/b.png" in said["depth"]


@pytest.fixture(scope="module")
def radiometric(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with 14-bit LWIR images, 96x128: train.json (8) and val.json (4), one of train with a tag."""
    root = tmp_path_factory.mktemp("radiometric")
    for side in ("visible", "lwir"):
        (root / side).mkdir()
    for split, numbers in (("train", range(8)), ("val", range(8, 12))):
        for i in numbers:
            values = 7000 + RANDOM.integers(0, 1000, (96, 128))
            values[4:74, 4:28] += 900
            assert cv2.imwrite(str(root / "lwir" / f"{i}.png"), values.astype(np.uint16))
            tagged(root / "visible" / f"{i}.png", 3 if i == 5 else 1, np.full((96, 128, 3), 10 + i, np.uint8))
        coco(root, [(f"visible/{i}.png", (96, 128)) for i in numbers], split)
    return root


SMALL = (
    *(*SMALLEST, "input.size=[96,128]", "trainer.batch_size=4", "data.workers=1", "trainer.test_checkpoint=last"),
    *("data.kind=coco", "data.train=train.json", "data.val=", "data.test=val.json"),
)


def test_a_run_writes_its_range_down_and_its_detector_uses_it(radiometric: Path, tmp_path: Path) -> None:
    wanted = ("input.modality=early", "data.lwir_quantiles=[0.01,0.99]", f"data.root={radiometric}", *SMALL)
    e = load_experiment(ROOT / "experiments" / "lite0.yaml", wanted)
    lines: list[str] = []
    run(e, tmp_path, echo=lines.append)
    directory = RunDirectory.of(e, tmp_path)
    low, high = directory.experiment().data.lwir_range or (0, 0)
    every = np.concatenate([cv2.imread(str(radiometric / "lwir" / f"{i}.png"), -1).reshape(-1) for i in range(8)])
    np.testing.assert_allclose((low, high), np.quantile(every, (0.01, 0.99)), atol=15)
    assert torch.load(directory.last, weights_only=True)["experiment"]["data"]["lwir_range"] == [low, high]

    (clipped,) = [line for line in lines if line.startswith("train: data.lwir_range") and "in 8 LWIR" in line]
    shares = [float(share) for share in re.findall(r"([\d.]+) %", clipped)]
    assert shares == pytest.approx([1, 1], abs=0.3)
    (orientation,) = [line for line in lines if "orientation tag" in line]  # counted in the loader's worker
    assert orientation.startswith("train: 1 of 8") and "5.png" in orientation
    assert any(line.startswith("test: data.lwir_range") for line in lines)
    assert run(e, tmp_path, resume=True, echo=lines.append)["epochs"] == 1  # the same quantiles: the same run

    detector = load_detector(directory.path, device="cpu")
    pair = (radiometric / "visible" / "0.png", radiometric / "lwir" / "0.png")
    values = cv2.imread(str(pair[1]), -1)
    mapped = np.rint(np.clip((values.astype(float) - low) * 255 / (high - low), 0, 255)).astype(np.uint8)
    black = np.zeros((96, 128, 3), np.uint8)
    samples = [detector.prepare(x) for x in (pair, (black, mapped), (black, values), (black, torch.from_numpy(values)))]
    for sample in samples:
        np.testing.assert_allclose(sample.lwir.astype(int), mapped, atol=1)
    facts = describe(directory.last, detector.experiment, (96, 128), "inside")
    assert json.loads(facts["lwir_range"]) == [low, high]
    shown = build_dataset(directory.experiment(), "test").frames[0]
    assert shown.reading.lwir_range == (low, high)


def test_a_detector_without_a_range_says_what_it_does_with_16_bits(radiometric: Path, tmp_path: Path) -> None:
    detector = load_detector(write_checkpoint(tmp_path / "lwir.ckpt", "input.modality=lwir"), device="cpu")
    file = radiometric / "lwir" / "0.png"
    with pytest.warns(UserWarning, match=rf"1 of 1 LWIR images have 16 bits, the first {file}, and only the high byte"):
        detector.predict([file])
    with pytest.raises(ImageError, match="has values of type uint16; an image is uint8"):
        detector.predict([cv2.imread(str(file), -1)])
    said: list[str] = []
    detect(detector, find_sources([file], side="lwir"), tmp_path / "out", echo=said.append)
    assert len(said) == 1 and "high byte" in said[0] and "data.lwir_range" in said[0]


def test_both_images_of_a_pair_are_doubted_by_their_own_names(radiometric: Path, tmp_path: Path) -> None:
    detector = load_detector(write_checkpoint(tmp_path / "pairs.ckpt", "input.modality=early"), device="cpu")
    deep, lwir = tmp_path / "deep.png", radiometric / "lwir" / "0.png"
    assert cv2.imwrite(str(deep), np.full((96, 128, 3), 4095, np.uint16))
    with pytest.warns(Doubt) as said:
        detector.predict([(deep, lwir)])
    coco(tmp_path, [("deep.png", (96, 128))])
    frame = replace(DataSource("coco", tmp_path).frames("train.json")[0], lwir=lwir)
    read_pair(frame, "early")
    for of_visible, of_lwir in (doubts_of([frame]).values(), [str(warning.message) for warning in said]):
        assert of_visible.startswith(f"1 of 1 visible images have 16 bits, the first {deep}, ")
        assert of_lwir.startswith(f"1 of 1 LWIR images have 16 bits, the first {lwir}, ")


def test_data_are_inspected_with_a_range(
    radiometric: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    sheet = tmp_path / "sheet.png"
    inspect(radiometric / "train.json", modality="lwir", stats=True, sheet=sheet, reading=Reading((7000, 8900)))
    printed = capsys.readouterr().out
    mean = float(re.findall(r"mean +([\d.]+)", printed)[0])
    values = np.stack([cv2.imread(str(radiometric / "lwir" / f"{i}.png"), -1) for i in range(8)])
    assert mean == pytest.approx(float((np.clip(values, 7000, 8900) - 7000).mean() / 1900), abs=0.003)
    assert "data.lwir_range 7000 to 8900" in printed
    inspect(radiometric / "train.json", modality="lwir", stats=True, sheet=sheet)
    assert "8 of 8 LWIR images have 16 bits" in capsys.readouterr().out
    file = radiometric / "train.json"
    done = command("inspect", file, "--modality", "lwir", "--lwir-range", 7000, 8900, "--sheet", sheet)
    assert done.returncode == 0 and "data.lwir_range 7000 to 8900" in done.stdout.replace("\n", " ")


def test_the_data_viewer_says_that_bits_are_lost(radiometric: Path, tmp_path: Path) -> None:
    keys = ("input.modality=lwir", f"data.root={radiometric}", *SMALL)
    with pytest.warns(Doubt, match="LWIR images have 16 bits"):
        write_data_view(load_experiment(ROOT / "experiments" / "lite0.yaml", keys), tmp_path, count=2)


def test_quantiles_of_8_bits_are_refused(few_pairs: Path) -> None:
    keys = ("input.modality=lwir", f"data.root={few_pairs}", "data.lwir_quantiles=[0,1]", *SMALL)
    with pytest.raises(ImageError, match=r"lwir/0\.png: no LWIR image.*more than 8 bits.*lwir_quantiles"):
        build_dataset(load_experiment(ROOT / "experiments" / "lite0.yaml", keys), "test")


def test_quantiles_are_of_all_columns_and_of_what_can_be_read(tmp_path: Path) -> None:
    values = np.full((512, 640), 7000, np.uint16)
    values[:, :4], values[:, 320:] = 0, 9000  # a black border of less than 1 %
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        cv2.imwrite(str(path), values)
    nobody = Annotations.from_rows([], size=(512, 640))
    frames = [Frame(path.stem, None, path, nobody) for path in paths]
    assert lwir_quantiles(frames, (0.02, 0.98)) == [7000, 9000]
    paths[0].write_bytes(paths[0].read_bytes()[:200])
    assert lwir_quantiles(frames, (0.02, 0.98)) == [7000, 9000]


def numbered(path: Path, codec: str, frames: int = 40) -> Path:
    """A film whose frames bear their numbers as eight white or black squares, over a noise that takes bytes."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8), (5, 5), 0)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), 25.0, (160, 96))
    for number in range(frames):
        frame = np.roll(noise, 3 * number, 1)
        frame[:20] = 0
        for bit in range(8):
            frame[2:18, 20 * bit + 2 : 20 * bit + 18] = 255 * (number >> bit & 1)
        writer.write(frame)
    writer.release()
    return path


def number_on(frame: np.ndarray) -> int:
    return sum(1 << bit for bit in range(8) if frame[10, 20 * bit + 10].mean() > 127)


def damaged(path: Path, which: set[int]) -> Path:
    """The chunks of these frames of an AVI file, their contents flipped."""
    data = bytearray(path.read_bytes())
    at, number = data.index(b"movi") + 4, 0
    while data[at : at + 4] == b"00dc":
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if number in which:
            data[at + 8 : at + 8 + size] = bytes(255 - byte for byte in data[at + 8 : at + 8 + size])
        at, number = at + 8 + size + size % 2, number + 1
    path.write_bytes(data)
    return path


def test_frames_after_a_damaged_one_are_read_and_keep_their_numbers(visible: Predictor, tmp_path: Path) -> None:
    lost = {0, 7, *range(12, 17), 30}
    video = damaged(numbered(tmp_path / "film.avi", "MJPG"), lost)
    frames = list(read_video(Video("x", video)))
    assert {place for place, frame in enumerate(frames) if frame is None} == lost
    assert [number_on(f) for f in frames if f is not None] == [i for i in range(40) if i not in lost]

    said: list[str] = []
    summary = detect(visible, find_sources([video]), tmp_path / "out", score=1, batch_size=8, echo=said.append)
    assert (summary.images, summary.lost) == (32, 8) and "8 damaged frames left out" in str(summary)
    (sentence,) = said
    assert f"{video}: 8 of 40 frames" in sentence and "first is frame 1" in sentence and "more" not in sentence
    entries = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [entry["id"] for entry in entries] == [i for i in range(40) if i not in lost]
    assert [entry["file_name"] for entry in entries][:2] == ["film.avi#000002", "film.avi#000003"]
    shown = [number_on(f) for f in read_video(Video("x", tmp_path / "out" / "film.avi.webm")) if f is not None]
    before = {0: 1, 7: 6, 30: 29} | dict.fromkeys(range(12, 17), 11)
    assert shown == [before.get(i, i) for i in range(40)]


@pytest.mark.parametrize(("name", "says"), [("a.mkv", "1 of 40 frames are damaged or"), ("a.avi", "has 39 of the 40")])
def test_a_frame_may_be_lost_without_a_failed_read(name: str, says: str, visible: Predictor, tmp_path: Path) -> None:
    """The next ones keep their numbers where the format has times; else a sentence says that they may not."""
    video = numbered(tmp_path / name, "MJPG")
    data = bytearray(video.read_bytes())
    at = [match.start() for match in re.finditer(b"\xff\xd8\xff", data)][20]
    data[at - 12 : at + 400] = bytes(412)
    video.write_bytes(data)
    said: list[str] = []
    detect(visible, find_sources([video]), tmp_path / "out", score=1, pictures=False, echo=said.append)
    assert says in "".join(said)
    if name == "a.mkv":
        numbers = [f if f is None else number_on(f) for f in read_video(Video("x", video))]
        assert numbers == [*range(20), None, *range(21, 40)]


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.avi").write_bytes(b"not a film")
    with pytest.raises(DataError, match=r"bad\.avi: not a video that can be decoded"):
        list(read_video(Video("x", tmp_path / "bad.avi")))
    odd = Video("x", numbered(tmp_path / "a:b 100% «ü».avi", "MJPG", 2))
    assert next(read_video(odd, side="lwir")).shape == (96, 160)


@pytest.mark.parametrize("codec", ["avi MJPG", "avi mp4v", "mp4 mp4v", "mkv MJPG"])
def test_whatever_is_damaged_the_rest_is_read(codec: str, tmp_path: Path) -> None:
    suffix, codec = codec.split()
    whole = numbered(tmp_path / f"a.{suffix}", codec, 60)
    assert [number_on(f) for f in read_video(Video("x", whole)) if f is not None] == list(range(60))
    data = bytearray(whole.read_bytes())
    for at in range(len(data) // 3, len(data) // 2, 7):  # also what says where a frame begins
        data[at] ^= 0xFF
    whole.write_bytes(data)
    frames = list(read_video(Video("x", whole)))
    good = [number_on(frame) for frame in frames if frame is not None]
    assert good[:10] == list(range(10)) and 25 < len(good) < 60 and len(frames) <= 60
    if codec == "MJPG":  # the other one's frames are made of those before
        assert good[-1] == 59
    if suffix == "mp4":  # its index says where each frame is
        assert len(frames) == 60


def write(path: Path, kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path, kind)
    return path


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "a.JPG", "JPEG")
    for name in ("b.heic", "c.HEIC", "d.3gp", "e.mts", "notes.txt", "f.dng"):
        (folder / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(100) if "ei" in name.lower() else b"x" * 40)
    write(folder / "g.gif", "GIF")
    (folder / ".thumbs").mkdir()
    write(folder / ".h.jpg", "JPEG")
    others: Counter[str] = Counter()
    assert [source.name for source in find_sources([folder], others=others)] == ["a.JPG"]
    once = (".3gp", ".mts", ".txt", ".dng", ".gif", "hidden folders", "hidden files")
    assert others == {".heic": 2} | dict.fromkeys(once, 1)
    assert "2 .heic" in listed(others)
    (folder / "a.JPG").unlink()
    with pytest.raises(DataError, match=r"in: no image or video there .*; there are 2 \.heic, "):
        find_sources([folder])


def test_content_decides_what_a_file_is(visible: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "a.jpg", "PNG")
    write(folder / "b.jfif", "JPEG")
    write(folder / "without", "JPEG")
    numbered(tmp_path / "c.mp4", "mp4v", 3).rename(folder / "c.3gp")
    numbered(tmp_path / "d.avi", "MJPG", 2).rename(folder / "d.jpg")
    found = {source.name: type(source) for source in find_sources([folder])}
    assert found == {"a.jpg": Still, "b.jfif": Still, "c.3gp": Video, "d.jpg": Video, "without": Still}
    assert detect(visible, find_sources([folder]), tmp_path / "out").images == 3 + 3 + 2
    (folder / "e.jpg").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"e\.jpg: not an image that can be decoded: it is text"):
        detect(visible, find_sources([folder / "e.jpg"]), tmp_path / "out")
    (folder / "f.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(DataError, match=r"f\.heic: not an image that can be decoded: it is HEIC"):
        visible.predict([folder / "f.heic"])


def test_kinds_of_files() -> None:
    transport = (b"\x47" + bytes(187)) * 2
    kinds = [kind_of(head) for head in (transport, bytes(4) + transport, b"Get free stuff", b"\0" * 50, b"")]
    assert [kind and kind.name for kind in kinds] == ["MPEG-TS", "MPEG-TS", "text", None, None]


def test_linked_folders_are_followed_without_end(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a.jpg", "JPEG")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "b.jpg", "JPEG")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    assert [source.name for source in find_sources([tmp_path / "in"])] == ["b.jpg", "link/a.jpg"]


@pytest.mark.parametrize("given", ["rtsp://camera/1", "http://a.org/b.jpg", "0", "/dev/null"])
def test_addresses_and_cameras_are_refused_by_name(given: str, visible: Predictor) -> None:
    with pytest.raises(DataError, match=f"^{given}: .*(address|camera)"):
        find_sources([given])
    if "://" in given:
        with pytest.raises(DataError, match=f"^{given}: .*address"):
            visible.predict([given])


def test_films_are_vp8_in_webm_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    videos, source = AnnotatedVideos(tmp_path), Video("a.avi", numbered(tmp_path / "a.avi", "MJPG", 3))
    capfd.readouterr()
    for place, grey in enumerate(range(0, 200, 10)):
        videos.add(source, np.full((97, 161, 3), grey, np.uint8), place)
    videos.close()
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "a.avi.webm").read_bytes()[:64].find(b"webm") > 0
    read = cv2.VideoCapture(str(tmp_path / "a.avi.webm"), cv2.CAP_FFMPEG)
    assert int(read.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little") == b"VP80"
    assert read.get(cv2.CAP_PROP_FPS) == pytest.approx(25, abs=0.01)
    greys = [float(frame.mean()) for frame in read_video(Video("x", tmp_path / "a.avi.webm")) if frame is not None]
    assert greys == pytest.approx(range(0, 200, 10), abs=6)
