"""The synthetic twin: reproducible, laid out as KAIST, and true in what it says of each figure."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import command
from defusedxml import ElementTree
from PIL import Image

from data_kaist.errors import RequestError, SplitError
from data_kaist.layouts import UNFINISHED, DataSource
from data_kaist.splits import FrameName
from data_kaist.synthetic import write_dataset, writer
from data_kaist.synthetic.canvas import Camera
from data_kaist.synthetic.conditions import WIDE_FACTORS, Conditions
from data_kaist.synthetic.figures import Person
from data_kaist.synthetic.render import Backdrop, Box, Noise, expose, make_backdrop, paint_figures
from data_kaist.synthetic.scene import Figure, FramePlan
from data_kaist.synthetic.writer import MARKER, _bbgt, frame_ids, is_validation, render_frame
from ssd_effnet.cli.main import main

SIZE = (256, 320)
FRAMES = 100
DAY_SETS = {"set00", "set01", "set02", "set06", "set07", "set08"}


@dataclass(frozen=True)
class Item:
    """One annotated object and the frame it is in."""

    frame: str
    label: str
    xywh: tuple[int, int, int, int]
    occlusion: int

    @property
    def is_day(self) -> bool:
        return self.frame[:5] in DAY_SETS


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("twin") / "data"
    assert write_dataset(out, FRAMES, SIZE, seed=7) == FRAMES
    return out


@pytest.fixture(scope="module")
def items(twin: Path) -> list[Item]:
    found = []
    for path in sorted((twin / "annotations-xml").rglob("*.xml")):
        frame = path.relative_to(twin / "annotations-xml").with_suffix("").as_posix()
        for item in ElementTree.parse(path).getroot().findall("object"):
            x, y, w, h = (int(item.find("bndbox").findtext(k)) for k in "xywh")
            found.append(Item(frame, item.findtext("name"), (x, y, w, h), int(item.findtext("occlusion"))))
    return found


def all_bytes(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != writer._LOCK)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def read(path: Path, flag: int) -> np.ndarray:
    picture = cv2.imread(str(path), flag)
    assert picture is not None, path
    return np.asarray(picture)


def image(twin: Path, frame: str, modality: str) -> np.ndarray:
    folder, number = frame.rsplit("/", 1)
    return read(twin / "images" / folder / modality / f"{number}.jpg", cv2.IMREAD_GRAYSCALE).astype(float)


def test_the_seed_decides_every_byte_in_any_number_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = 10
    monkeypatch.setattr(writer, "FRAMES_A_TASK", 3)
    assert len(list(writer._tasks(frame_ids(frames)))) > 1
    for name, seed, jobs, wide in (("a", 3, 1, 0), ("b", 3, 2, 0), ("c", 4, 1, 0), ("d", 3, 1, 1), ("e", 3, 2, 1)):
        write_dataset(tmp_path / name, frames, (96, 128), seed, jobs, wide=bool(wide))
    a, b, c, d, e = (all_bytes(tmp_path / name) for name in "abcde")
    assert a == b and d == e
    assert a.keys() | {name for name in d if name.startswith("annotations-paired")} == d.keys()
    assert all(a[name] != d[name] for name in a if not name.endswith(".xml"))
    assert a.keys() == c.keys()
    images = [name for name in a if name.endswith(".jpg")]
    assert len(images) == 2 * frames
    assert all(a[name] != c[name] for name in images if "visible" in name)


def test_fewer_frames_are_a_part_of_more(tmp_path: Path) -> None:
    write_dataset(tmp_path / "few", 12, (96, 128), 0)
    write_dataset(tmp_path / "more", 20, (96, 128), 0)
    few, more = all_bytes(tmp_path / "few"), all_bytes(tmp_path / "more")
    del few[MARKER]
    assert few.items() <= more.items()


def test_the_plain_twin_is_what_it_was(tmp_path: Path) -> None:
    """Studies run on it. Numbers of the images, because JPEG's bytes are OpenCV's."""
    write_dataset(tmp_path, 20, (96, 128), 5)
    files = sorted(tmp_path.rglob("*.xml"))
    assert hashlib.sha256(b"".join(map(Path.read_bytes, files))).hexdigest()[:16] == "b9b43fb0855f481b"
    for modality, mean, deviation in (("visible", 73.412, 47.399), ("lwir", 38.222, 11.655)):
        images = np.stack([read(path, cv2.IMREAD_GRAYSCALE) for path in sorted(tmp_path.rglob(f"{modality}/*.jpg"))])
        assert (images.mean(), images.std()) == pytest.approx((mean, deviation), abs=0.02)


def test_layout(twin: Path) -> None:
    visible = sorted((twin / "images").glob("set*/V*/visible/I*.jpg"))
    assert len(visible) == FRAMES
    for path in visible:
        set_name, video, _, file = path.relative_to(twin / "images").parts
        assert re.fullmatch(r"set\d\d/V\d{3}/I\d{5}\.jpg", f"{set_name}/{video}/{file}")
        lwir = path.parents[1] / "lwir" / file
        assert read(path, cv2.IMREAD_COLOR).shape == (*SIZE, 3)
        assert read(lwir, cv2.IMREAD_GRAYSCALE).shape == SIZE
        xml = twin / "annotations-xml" / set_name / video / file.replace(".jpg", ".xml")
        root = ElementTree.parse(xml).getroot()
        assert (root.findtext("size/height"), root.findtext("size/width")) == tuple(map(str, SIZE))
        assert root.findtext("filename") == f"{set_name}/{video}/{file[:-4]}"
    assert "seed: 7" in (twin / MARKER).read_text()
    assert not (twin / UNFINISHED).exists()


def test_xml_has_the_tags_of_the_real_files(twin: Path, items: list[Item], shared: Path) -> None:
    def tags(path: Path) -> list[str]:
        root = ElementTree.parse(path).getroot()
        first = root.find("object")
        return [e.tag for part in (root.find("source"), root.find("size"), first) for e in part.iter()]

    real = next((shared / "data/kaist-mini/annotations-xml").rglob("*.xml"))
    assert tags(twin / "annotations-xml" / f"{items[0].frame}.xml") == tags(real)


def test_shares_and_split_rules() -> None:
    ids = frame_ids(1000)
    assert len(set(ids)) == 1000
    validation = [f for f in ids if is_validation(f)]
    assert [str(f) for f in validation][:2] == ["set02/V001/I00121", "set02/V001/I00123"]
    assert len(validation) == 35
    assert all(121 <= f.number <= 189 and f.number % 2 == 1 for f in validation)
    train = [f for f in ids if f.set <= 5]
    test = [f for f in ids if f.set >= 6]
    assert (len(train), len(test)) == (700, 300)
    assert sum(f.daytime == "day" for f in ids) == 600
    assert all(f.number % 2 == 1 for f in train)
    assert all(f.number % 20 == 19 for f in test)
    assert {f.set for f in ids} == set(range(12))
    for frames in (5, 6, 17):  # small sets have every split
        assert len({(f.set >= 6, f.daytime == "day", is_validation(f)) for f in frame_ids(frames)}) == 5


def test_about_a_quarter_of_the_frames_is_empty_but_no_validation_frame(twin: Path, items: list[Item]) -> None:
    peopled = {item.frame for item in items}
    validation = {str(f) for f in frame_ids(FRAMES) if is_validation(f)}
    assert validation <= {item.frame for item in items if item.label == "person" and item.occlusion < 2}
    assert 0.12 < 1 - len(peopled - validation) / (FRAMES - len(validation)) < 0.38


def test_boxes_lie_in_the_frame(items: list[Item]) -> None:
    assert len(items) > FRAMES
    for item in items:
        x, y, w, h = item.xywh
        assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= SIZE[1] and y + h <= SIZE[0], item
        assert item.occlusion in (0, 1, 2)
    assert {item.label for item in items} >= {"person", "people", "cyclist"}
    heights = [item.xywh[3] * 512 / SIZE[0] for item in items if item.label == "person"]
    assert np.mean([40 <= h <= 150 for h in heights]) > 0.7


def contrast(twin: Path, item: Item, modality: str) -> float:
    """Mean of the trunk less that of the strips left and right of the box, grey levels."""
    x, y, w, h = item.xywh
    picture = image(twin, item.frame, modality)
    rows = slice(y + h // 6, y + h // 2)
    trunk = picture[rows, x + w // 3 : x + w - w // 3]
    around = np.concatenate([picture[rows, x - w // 2 : x], picture[rows, x + w : x + w + w // 2]], axis=1)
    return float(trunk.mean() - around.mean())


def test_bodies_are_warm_at_night_and_hard_to_see(twin: Path, items: list[Item]) -> None:
    clear = [i for i in items if i.label == "person" and i.occlusion == 0 and i.xywh[3] > 24 and i.xywh[2] > 5]
    clear = [i for i in clear if i.xywh[2] < i.xywh[0] and i.xywh[0] + 2 * i.xywh[2] < SIZE[1]]
    night, day = [i for i in clear if not i.is_day], [i for i in clear if i.is_day]
    assert min(len(night), len(day)) > 20
    warm = [contrast(twin, item, "lwir") for item in night]
    assert np.mean(warm) > 6
    assert np.mean(np.array(warm) > 0) > 0.85
    visible = [np.median([abs(contrast(twin, i, "visible")) for i in group]) for group in (night, day)]
    assert visible[0] < visible[1]
    assert np.mean([image(twin, i.frame, "visible").mean() for i in night]) < 80


def flat_view(depth: np.ndarray) -> Backdrop:
    camera = Camera(focal=350.0, height=1.7, centre_x=depth.shape[1] / 2, horizon=100.0)
    look = replace(Conditions.sample(np.random.default_rng(0), day=True), sun_side=0)
    visible = np.full((*depth.shape, 3), 128, np.uint8)
    return Backdrop(look, camera, visible, np.full(depth.shape, 100, np.uint8), depth, np.zeros((0, 3)), [])


def somebody(**changes: object) -> Person:
    """An ordinary person seen from behind."""
    person = Person.sample(np.random.default_rng(1))
    plain = {"stature": 1.7, "build": 1.0, "view": 0.0, "stride": 0.05, "extra": "", "skirt": False, "hem": 0.47}
    return replace(person, **{**plain, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("covered", "level"), [(0.0, 0), (0.06, 0), (0.35, 1), (0.72, 2), (1.0, None)])
def test_occlusion_is_what_furniture_covers(covered: float, level: int | None) -> None:
    plan = FramePlan([Figure(0, somebody(), False, 0.0, 7.0)], ["person"])
    rng = np.random.default_rng(0)
    open_box = paint_figures(flat_view(np.full((260, 320), np.inf, np.float32)), plan, rng)[0]
    depth = np.full((260, 320), np.inf, np.float32)
    # A wall 3 m away over the rows from the feet up; a standing body fills its rows about evenly.
    bottom = open_box.y + open_box.h + 4
    depth[bottom - round(covered * open_box.h) - 2 : bottom] = 3.0
    boxes = paint_figures(flat_view(depth), plan, np.random.default_rng(0))
    if level is None:
        assert boxes == []
    else:
        assert boxes == [replace(open_box, occlusion=level)], "the box is the full extent, whatever hides it"


def test_occlusion_by_another_person_and_not_by_a_farther_one() -> None:
    free = np.full((260, 320), np.inf, np.float32)
    front, back = Figure(0, somebody(), False, 0.0, 6.0), Figure(1, somebody(), False, 0.12, 7.0)
    boxes = paint_figures(flat_view(free), FramePlan([front, back], ["person", "person"]), np.random.default_rng(0))
    assert boxes[0].occlusion == 0
    assert boxes[0].h > boxes[1].h
    assert boxes[1].occlusion == 2
    beside = replace(back, x=2.0)
    boxes = paint_figures(flat_view(free), FramePlan([front, beside], ["person", "person"]), np.random.default_rng(0))
    assert [box.occlusion for box in boxes] == [0, 0]


def test_a_group_is_one_box_that_its_members_do_not_hide() -> None:
    free = np.full((260, 320), np.inf, np.float32)
    members = [Figure(0, somebody(), False, 0.25 * k, 9.0 + 0.1 * k) for k in range(4)]
    (box,) = paint_figures(flat_view(free), FramePlan(members, ["people"]), np.random.default_rng(0))
    assert (box.label, box.occlusion) == ("people", 0)
    assert box.w > 0.75 * 350 / 9.3


def test_boxes_fit_both_images_when_the_cameras_are_apart() -> None:
    """Also of a figure over the border, and of one that the LWIR image does not reach."""
    look = replace(Conditions.sample(np.random.default_rng(0), day=True), sun_side=0, ambient=0.3, lwir_blur=0.1)
    look = replace(look, misalignment=(6, -3), body_heat=120.0)
    view = flat_view(np.full((268, 332), np.inf, np.float32))
    empty = replace(view, look=look, visible=view.visible + 127)
    noise = (np.zeros((400, 400, 3), np.int16), np.zeros((400, 400), np.int16))
    plain = expose(empty, noise, np.random.default_rng(0))
    found = []
    for x in (0.0, 1.3, -3.12, -3.42):
        view = replace(empty, visible=empty.visible.copy(), heat=empty.heat.copy())
        plan = FramePlan([Figure(0, somebody(insulation=0.1), False, x, 7.0)], ["person"])
        (box,) = paint_figures(view, plan, np.random.default_rng(0))
        found.append(box)
        visible, lwir = map(cv2.absdiff, expose(view, noise, np.random.default_rng(0)), plain)
        for changed, xywh in ((visible.max(axis=2) > 100, (box.x, box.y, box.w, box.h)), (lwir > 12, box.lwir)):
            assert np.abs(np.subtract(cv2.boundingRect(changed.astype(np.uint8)), xywh)).max() <= 1, (x, xywh)
    assert found[0].lwir == (found[0].x - 6, found[0].y + 3, found[0].w, found[0].h)
    assert found[-1].w > 0 and found[-1].lwir[2] == 0
    assert [_bbgt(found, side).split()[-2] for side in ("visible", "lwir")] == ["0", "1"], "an ignore region there"


def test_what_wide_varies_lies_between_its_limits_and_is_plain_elsewhere() -> None:
    plain = Conditions.sample(np.random.default_rng(0), day=False)
    looks = [plain.widened(np.random.default_rng(k)) for k in range(400)]
    for each in fields(Conditions):
        values = np.array([getattr(look, each.name) for look in looks], float)
        if "wide" in each.metadata:
            low, high, share = each.metadata["wide"]
            drawn = values[values != each.default]
            assert getattr(plain, each.name) == each.default
            assert abs(len(drawn) / 400 - share) < 0.08, each.name
            assert low <= drawn.min() and drawn.max() <= high and np.ptp(drawn) > 0.9 * (high - low), each.name
        elif each.name in (*WIDE_FACTORS, "misalignment", "tint"):
            assert values.std(axis=0).max() > 0.03 * abs(values).mean(), each.name
        else:
            assert np.ptp(values, axis=0).max() == 0, each.name
    assert np.abs([look.misalignment for look in looks]).max(axis=0).tolist() == [6, 3]


Pictures = list[tuple[np.ndarray, np.ndarray, list[Box]]]


@cache
def rendered(day: bool, **changes: float) -> Pictures:
    """Three frames each of two backgrounds with little noise whose conditions are changed."""
    size, found = (128, 160), []
    changes = {"noise": 1.0, "lwir_noise": 0.3, **changes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conditions, "widened", lambda look, rng: replace(look, **changes))
        for k in range(2):
            backdrop = make_backdrop(np.random.default_rng(k), size, day, wide=True)
            noise = Noise(np.random.default_rng(0), size).scaled(backdrop.look)
            names = [FrameName(2, 1, 121 + 2 * n) for n in range(3)]
            found += [render_frame(name, backdrop, noise, size, 0) for name in names]
    return found


def sharpness(image: np.ndarray) -> float:
    return float(cv2.Laplacian(image, cv2.CV_64F).std())


def boxes_of(pictures: Pictures) -> np.ndarray:
    return np.array([(b.x, b.y, b.w, b.h) for *_, boxes in pictures for b in boxes if b.label != "people"], float)


def neighbours(pictures: Pictures) -> float:
    """Share of boxes beside another of about their height."""
    pairs = [(a, b) for *_, boxes in pictures for a in boxes for b in boxes if a is not b]
    return len({id(a) for a, b in pairs if abs(a.x - b.x) < 0.6 * a.h and abs(a.h - b.h) < 0.15 * a.h}) / len(pairs)


def colour(pictures: Pictures) -> float:
    """Median distance between the largest and the smallest channel on trunks."""
    large = [(v, b) for v, _, boxes in pictures for b in boxes if b.h > 12]
    trunks = [v[b.y + b.h // 5 : b.y + b.h // 2, b.x : b.x + b.w] for v, b in large]
    return float(np.median([np.ptp(trunk.mean(axis=(0, 1))) for trunk in trunks]))


MEASURES: dict[str, Callable[[Pictures], float]] = {
    "light": lambda p: float(np.mean([v.mean() for v, *_ in p])),
    "contrast": lambda p: float(np.mean([v.std() for v, *_ in p])),
    "visible detail": lambda p: float(np.mean([sharpness(v) for v, *_ in p])),
    "lwir contrast": lambda p: float(np.mean([lwir.std() for _, lwir, _ in p])),
    "lwir detail": lambda p: float(np.mean([sharpness(lwir) for _, lwir, _ in p])),
    "visible road": lambda p: float(np.mean([sharpness(v[-24:]) for v, *_ in p])),
    "lwir road": lambda p: float(np.mean([sharpness(lwir[-24:]) for _, lwir, _ in p])),
    "people": lambda p: len(boxes_of(p)),
    "height": lambda p: float(np.median(boxes_of(p)[:, 3])),
    "feet": lambda p: float((boxes_of(p)[:, 1] + boxes_of(p)[:, 3]).mean()),
    "feet apart": lambda p: float((boxes_of(p)[:, 1] + boxes_of(p)[:, 3]).std()),
    "neighbours": neighbours,
    "colour": colour,
}


@pytest.mark.parametrize(
    ("changes", "measure", "low", "high"),
    [
        ({"zoom": 1.8}, "height", 1.4, 2.2),
        ({"eye": 3.0}, "feet apart", 1.3, 9),
        ({"tilt": 0.08}, "feet", 1.05, 1.4),
        ({"crowd": 6.0}, "people", 1.7, 4),
        ({"company": 0.8}, "neighbours", 1.1, 9),
        ({"clothing": 0.7}, "colour", 1.2, 9),
        ({"lamp_power": 2.5}, "light", 1.05, 2),
        ({"ambient": 0.3}, "light", 0.2, 0.8),
        ({"haze": 0.04}, "contrast", 0.2, 0.9),
        ({"rain": 400.0}, "visible detail", 1.1, 4),
        ({"weathering": 3.0}, "visible road", 1.1, 4),
        ({"junk": 8.0}, "lwir detail", 1.1, 4),
        ({"noise": 15.0}, "visible detail", 1.3, 9),
        ({"blur": 5.0}, "visible detail", 0.2, 0.9),
        ({"motion": 12.0}, "visible detail", 0.2, 0.9),
        ({"lwir_blur": 8.0}, "lwir detail", 0.2, 0.9),
        ({"lwir_noise": 3.5}, "lwir detail", 1.5, 4),
        ({"lwir_floor": 60.0}, "lwir contrast", 1.2, 4),
        ({"lwir_level": 90.0}, "lwir contrast", 1.2, 4),
        ({"heat_spread": 2.5}, "lwir contrast", 1.1, 4),
        ({"heat_texture": 200.0}, "lwir road", 1.2, 9),
    ],
)
def test_each_condition_shows_in_the_images(changes: dict[str, float], measure: str, low: float, high: float) -> None:
    day = "lamp_power" not in changes
    assert low < MEASURES[measure](rendered(day, **changes)) / MEASURES[measure](rendered(day)) < high


def test_paired_annotations_say_where_each_camera_sees_people(tmp_path: Path) -> None:
    write_dataset(tmp_path, 60, (96, 128), 0, wide=True)
    assert "wide" in (tmp_path / MARKER).read_text()
    source = DataSource("kaist", tmp_path, form="paired")
    visible, lwir = (source.frames("train-all-02", modality=modality) for modality in ("early", "lwir"))
    xml = DataSource("kaist", tmp_path).frames("train-all-02")
    offsets = set()
    for a, b, c in zip(visible, lwir, xml, strict=True):
        np.testing.assert_array_equal(a.annotations.boxes_xyxy, c.annotations.boxes_xyxy)
        assert a.annotations.labels.tolist() == b.annotations.labels.tolist() == c.annotations.labels.tolist()
        for box, other in zip(a.annotations.boxes_xyxy, b.annotations.boxes_xyxy, strict=True):
            ends = np.stack([box, other])
            if ends[:, :2].min() > 0 and (ends[:, 2:] < (128, 96)).all():  # inside both images
                np.testing.assert_array_equal(box[2:] - box[:2], other[2:] - other[:2])
                offsets.add(tuple((box - other)[:2].tolist()))
    assert len(offsets) > 3 and all(abs(x) <= 6 and abs(y) <= 3 for x, y in offsets)
    qualities = {str(Image.open(path).quantization) for path in tmp_path.rglob("*.jpg")}
    assert len(qualities) > 3


def test_command_writes_then_does_nothing_then_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints as the next command runs."""
    monkeypatch.chdir(tmp_path)
    request = [str(tmp_path / "my data"), "--frames", "6", "--size", "96x128", "--seed", "1"]
    refused = [(other, 1, "another data set") for other in (["--seed", "2"], ["--wide"])]
    for more, code, words in (([], 0, "pairs"), ([], 0, "already holds"), *refused):
        assert main(["synthesize", *request, *more]) == code
        said = capsys.readouterr()
        assert words in (said.err if code else said.out) and len(said.err.splitlines()) == code
        if "next: ssd-effnet " in said.out:
            done = command(*shlex.split(said.out.partition("next: ssd-effnet ")[2]))
            assert done.returncode == 0 and (tmp_path / "sheet.png").is_file(), done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--frames", "5", "--size", "512"], "HxW"),
        (["--frames", "0"], "frames must be"),
        (["--frames", "5", "--size", "64x64"], "both sides"),
        (["--frames", "5", "--jobs", "0"], "jobs must be"),
        (["--frames", "5", "--seed", "-1"], "seed must be"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(["synthesize", str(tmp_path / "out"), *arguments]) == 1
    except SystemExit as error:
        assert error.code
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(RequestError, match="not empty"):
        write_dataset(tmp_path, 5, (96, 128), 0)
    with pytest.raises(RequestError, match="is a file"):
        write_dataset(tmp_path / "letter.txt", 5, (96, 128), 0)
    assert all_bytes(tmp_path) == {"letter.txt": b"mine"}


def test_an_interrupted_run_is_noticed_and_begun_anew(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stop(done: int, total: int) -> None:
        with pytest.raises(RequestError, match="another process is writing a data set there"):
            write_dataset(out, 6, (96, 128), 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(out, 6, (96, 128), 0, progress=stop)
    assert not (out / MARKER).exists()
    with pytest.raises(SplitError, match=rf"{UNFINISHED}: the data set is still being made, or was left half made"):
        DataSource("kaist", out).frames("train-all-01")
    stray = out / "images" / "set00" / "stray.jpg"
    stray.write_bytes(b"half")
    write_dataset(out, 6, (96, 128), 0)
    write_dataset(tmp_path / "whole", 6, (96, 128), 0)
    assert all_bytes(out) == all_bytes(tmp_path / "whole")
