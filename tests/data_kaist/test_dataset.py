"""Frames found, read and batched; and what is said when they cannot be."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from untrained import of_pairs

from data_kaist.annotations import AnnotationFormat
from data_kaist.dataset import DetectionDataset, EpochSampler, collate, fingerprint, read_pair
from data_kaist.errors import AnnotationError, DataError, Doubt, ImageError, SplitError
from data_kaist.images import read_image
from data_kaist.layouts import DataSource, Frame, Modality, image_ids, spread
from data_kaist.structures import Annotations, Batch
from data_kaist.transforms import Compose, HorizontalFlip, Mosaic, PhotometricJitter, RandomResizedCrop, Resize
from ssd_effnet.build import build_dataset
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.config.yaml_files import ConfigError
from ssd_effnet.training.run_directory import RunDirectory

SIZE = (48, 60)
NAMES = ["set00/V000/I00001", "set00/V000/I00003", "set00/V001/I00001", "set03/V000/I00001", "set06/V000/I00019"]
TRAIN = NAMES[:4]
AUGMENT = Compose((Mosaic(), PhotometricJitter(p=1), RandomResizedCrop(p=1), HorizontalFlip(), Resize((40, 50))))


def write_image(path: Path, seed: int, colour: bool, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
    image = cv2.resize(noise, size[::-1])
    _, data = cv2.imencode(path.suffix, image if colour else image[..., 0])
    data.tofile(path)


def write_kaist(root: Path, names: list[str]) -> Path:
    """A data set in KAIST's layout; frame i has i persons, 20 pixels high."""
    height, width = SIZE
    for i, name in enumerate(names):
        video, _, number = name.rpartition("/")
        write_image(root / "images" / video / "visible" / f"{number}.jpg", i, colour=True)
        write_image(root / "images" / video / "lwir" / f"{number}.jpg", i + 100, colour=False)
        rest = "<y>5</y><w>8</w><h>20</h></bndbox><occlusion>0</occlusion></object>"
        objects = "".join(f"<object><name>person</name><bndbox><x>{10 * k}</x>{rest}" for k in range(i))
        path = root / "annotations-xml" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        of_image = f"<size><width>{width}</width><height>{height}</height></size>"
        path.write_text(f"<annotation>{of_image}{objects}</annotation>")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_kaist(tmp_path / "données", NAMES)  # not ASCII, on purpose


def image_file(root: Path, name: str, side: str) -> Path:
    video, _, number = name.rpartition("/")
    return root / "images" / video / side / f"{number}.jpg"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_kaist_frames_are_sorted_and_complete(root: Path) -> None:
    frames = DataSource("kaist", root).frames("train-all-02", modality="early")
    assert [frame.name for frame in frames] == TRAIN
    assert [len(frame.annotations) for frame in frames] == [0, 1, 2, 3]
    assert [frame.annotations.daytime for frame in frames] == ["day", "day", "day", "night"]
    assert frames[0].annotations.size == SIZE
    assert frames[0].visible == image_file(root, NAMES[0], "visible")
    assert frames[0].lwir == image_file(root, NAMES[0], "lwir")
    left = DataSource("kaist", root).frames("train-all-02", exclude="set00/V000/I00002-I00003")
    assert [frame.name for frame in left] == [TRAIN[0], *TRAIN[2:]]


def test_annotations_alone_can_be_loaded(root: Path) -> None:
    shutil.rmtree(root / "images")
    frames = DataSource("kaist", root).frames("train-all-02", modality=None)
    assert [frame.visible for frame in frames] == [None] * 4
    with pytest.raises(SplitError, match=r"no KAIST images there; looked for .*images/setXX/VYYY/visible"):
        DataSource("kaist", root).frames("train-all-02")


ROW = "person 10 5 8 20 0 0 0 0 0 0 0\n"


def write_text(folder: Path, layout: str, text: str) -> None:
    """Text annotations of the first two training frames alone."""
    for name in NAMES[:2]:
        video, _, number = name.rpartition("/")
        path = folder / layout.format(video=video, number=number, flat=name.replace("/", "_"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("text", [f"% bbGt version=3\n{ROW}", "person 10 5 18 25\n"])
def test_sanitized_annotations_are_read_flat_with_corners_or_without(text: str, root: Path) -> None:
    write_text(root / "sanitized_annotations", "{flat}.txt", text)
    frames = DataSource("kaist", root, form="bbgt").frames("train-all-02", modality="early")
    assert [frame.name for frame in frames] == NAMES[:2]  # the selection, not every image
    assert [frame.annotations.boxes_xyxy.tolist() for frame in frames] == [[[10, 5, 18, 25]]] * 2
    assert [frame.annotations.labels.tolist() for frame in frames] == [["person"]] * 2
    truncate(image_file(root, NAMES[0], "visible"))
    for frame in DataSource("kaist", root, form="bbgt").frames("train-all-02", modality="early"):
        assert frame.annotations.size == SIZE  # of the first image that can be read
    image_file(root, NAMES[1], "lwir").unlink()
    with pytest.raises(ImageError, match=r"lwir/I00003\.jpg: missing"):
        DataSource("kaist", root, form="bbgt").frames("train-all-02", modality="early")


def test_corners_are_not_guessed_where_they_cannot_be(root: Path) -> None:
    write_text(root / "sanitized_annotations", "{flat}.txt", "person 10 5 8 20\n")  # x y w h: no corners
    with pytest.raises(AnnotationError, match=r"set00_V000_I00001\.txt: object 1 \(person\) has a box without area"):
        DataSource("kaist", root, form="bbgt").frames("train-all-02")


@pytest.mark.parametrize(
    ("folder", "layout", "form"),
    [
        ("annotations-bbgt", "{video}/{number}.txt", "bbgt"),
        ("annotations", "{video}/visible/{number}.txt", "paired"),
        ("annotations", "visible/{video}/{number}.txt", "paired"),
        ("annotations_paired", "{video}/visible/{number}.txt", "paired"),
    ],
)
def test_frames_without_annotation_are_not_in_a_selection(
    folder: str, layout: str, form: AnnotationFormat, root: Path
) -> None:
    write_text(root / folder, layout, f"% bbGt version=3\n{ROW}")
    for source in (
        DataSource("kaist", root, form),
        DataSource("kaist", root).annotated(form),
        DataSource("kaist", root).annotated(folder),
        DataSource("kaist", root).annotated(str(root / folder)),
    ):
        with pytest.warns(Doubt, match=rf"{folder}: 2 of the 4 frames of train-all-02 have no annotation"):
            frames = source.frames("train-all-02")
        assert [frame.name for frame in frames] == NAMES[:2]
        assert source.annotations_of("").startswith(f"{root / folder}")
        assert frames[0].annotations.size == SIZE  # the text states none: that of the images
    with pytest.raises(SplitError, match="'test-all-20' is empty"), pytest.warns(Doubt):
        source.frames("test-all-20")


def test_the_boxes_of_a_pair(root: Path) -> None:
    for side, x in (("visible", 10), ("lwir", 52)):
        write_text(root / "pairs", f"{{video}}/{side}/{{number}}.txt", f"% bbGt version=3\nperson {x}{ROW[9:]}")
    found = {}
    for box_of in ("modality", "visible", "lwir", "union"):
        source = replace(DataSource("kaist", root, box_of=box_of).annotated("pairs"))
        for modality in ("early", "lwir"):
            frame, _ = source.frames("set00/V000/I00000-I00009", modality=modality)
            found[box_of, modality] = frame.annotations.boxes_xyxy[0, ::2].tolist()
    assert source.annotations_of("").endswith(", union")
    assert found["modality", "early"] == found["visible", "lwir"] == [10, 18]
    assert found["modality", "lwir"] == found["lwir", "early"] == [52, 60]
    assert found["union", "early"] == [10, 60]
    write_text(root / "pairs", "{video}/lwir/{number}.txt", "% bbGt version=3\n")
    with pytest.raises(AnnotationError, match=r"lwir/I00001\.txt: its objects are not those of .*visible/I00001\.txt"):
        source.frames("set00/V000/I00000-I00009")


def test_a_coco_file_annotates_kaists_frames(root: Path) -> None:
    """As the improved test annotations are shipped: frames by im_name, in any order, with ids of their own."""
    rows = [{"id": i, "image_id": 9 - i, "category_id": 1, "bbox": [5, 6, 9, 30 + i]} for i in range(2)]
    images = [{"id": 9 - i, "im_name": NAMES[i], "height": 48, "width": 60} for i in range(2)]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "person"}]}
    (root / "own.json").write_text(json.dumps(content))
    source = DataSource("kaist", root).annotated("own.json")
    with pytest.warns(Doubt, match="2 of the 4 frames"):
        frames = source.frames("train-all-02", modality="early")
    assert [frame.name for frame in frames] == NAMES[:2] and image_ids(frames) == [0, 1]  # as of any split of KAIST
    assert [frame.annotations.boxes_xyxy.tolist() for frame in frames] == [[[5, 6, 14, 36]], [[5, 6, 14, 37]]]
    assert read_pair(frames[0], "early")[0] is not None and source.annotations_of("x") == str(root / "own.json")
    for side in ("visible", "lwir"):
        image_file(root, NAMES[0], side).unlink()
    with pytest.warns(Doubt, match=r"1 of the \d frames of train-all-02 have no image"):
        (left,) = source.frames("train-all-02", modality="early")
    assert (left.name, left.place) == (NAMES[1], 1)  # numbers are those of all images of the file
    images[1]["im_name"] = NAMES[0].replace("V000/", "V000/lwir/")
    (root / "own.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="two of its images are of one frame"):
        source.frames("train-all-02")
    for given, says in (("none.json", "none.json: is not there"), ("images", "images: holds no KAIST annotations")):
        with pytest.raises(SplitError, match=says):
            DataSource("kaist", root).annotated(given)


def test_lists_of_frames_are_splits(root: Path) -> None:
    (root / "imageSets").mkdir()
    listed = root / "imageSets/train.txt"
    listed.write_text(f"{NAMES[2]}\n\nset00/V000/visible/I00003\nset00_V000_lwir_I00001.jpg\n")
    source = DataSource("kaist", root)
    assert [frame.name for frame in source.frames("imageSets/train.txt")] == NAMES[:3]
    assert [frame.name for frame in source.frames(str(listed), exclude="set00/V000/I00001-I00001")] == NAMES[1:3]
    together = source.frames("imageSets/train.txt+test-all-20")
    assert [frame.name for frame in together] == [*NAMES[:3], NAMES[4]]
    (root / "annotations-xml" / f"{NAMES[1]}.xml").unlink()
    with pytest.warns(Doubt, match="1 of the 3 frames"):
        assert len(source.frames("imageSets/train.txt")) == 2
    listed.write_text(f"{NAMES[0]}\nset01/V000/I00001\n")
    (root / "annotations-xml/set01/V000").mkdir(parents=True)
    shutil.copy(root / "annotations-xml" / f"{NAMES[0]}.xml", root / "annotations-xml/set01/V000/I00001.xml")
    with pytest.raises(ImageError, match=r"set01/V000/visible/I00001\.jpg: missing"):
        source.frames("imageSets/train.txt")
    listed.write_text("some/where\n")
    with pytest.raises(SplitError, match=r"train\.txt: line 1 names no KAIST frame"):
        source.frames("imageSets/train.txt")
    with pytest.raises(SplitError, match=r"none\.txt: cannot be read"):
        source.frames("none.txt")


def test_a_runs_splits_have_annotations_of_their_own(root: Path) -> None:
    write_text(root / "sanitized_annotations", "{flat}.txt", "person 10 5 18 25\n")
    keys = ("data.train=train-all-02", "data.val=set00/V000/I00003-I00003+set03/V000/I00001-I00001")
    keys = (*keys, "data.test=test-all-20", f"data.root={root}")

    def sizes(*more: str) -> dict[str, list[int]]:
        e = load_experiment("lite0", [*keys, *more])
        return {stage: [len(a) for a in build_dataset(e, stage).annotations] for stage in ("train", "val", "test")}

    assert sizes() == {"train": [0, 2], "val": [1, 3], "test": [4]}
    own = "data.train_annotations=bbgt"
    with pytest.warns(Doubt):
        assert sizes(own) == {"train": [1], "val": [1], "test": [4]}  # val as train, test the original
        assert sizes(own, "data.val_annotations=xml") == {"train": [1], "val": [1, 3], "test": [4]}
        assert sizes("data.annotations=bbgt", "data.test_annotations=xml") == {"train": [1], "val": [1], "test": [4]}
    peopled = build_dataset(load_experiment("lite0", [*keys, "data.train_frames=with_people"]), "train")
    assert len(peopled) == 1 and "1 in which nobody counts are left out" in str(peopled)
    assert str(build_dataset(load_experiment("lite0", list(keys)), "val")) == "2 frames (1 by day, 1 by night)"
    run = RunDirectory(root.parent / "runs/lite0/seed0")  # looked at from elsewhere
    e = load_experiment("lite0", [*keys, f"data.test_annotations={root.name}/annotations-xml"])
    assert run.at_hand(e).data.test_annotations == str(root / "annotations-xml")
    with pytest.raises(ConfigError, match=r"data\.test_annotations"):
        load_experiment("lite0", ["data.kind=coco", "data.test_annotations=xml"])


@pytest.mark.parametrize(("where", "suffix"), [("images", ".png"), (".", ".png"), ("images", ".JPG"), (".", ".jpeg")])
def test_kaist_images_may_have_other_endings_and_lie_in_the_root(where: str, suffix: str, root: Path) -> None:
    before = [read_pair(frame, "early") for frame in DataSource("kaist", root).frames("train-all-02", modality="early")]
    for file in list((root / "images").glob("set*/V*/*/*.jpg")):
        if suffix == ".png":
            image = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_UNCHANGED)
            cv2.imencode(".png", image)[1].tofile(file)
        file.rename(file.with_suffix(suffix))
    if where == ".":
        for folder in list((root / "images").iterdir()):
            folder.rename(root / folder.name)
        (root / "images").rmdir()
    frames = DataSource("kaist", root).frames("train-all-02", modality="early")
    assert frames[0].visible == root / where / f"set00/V000/visible/I00001{suffix}"
    for frame, then in zip(frames, before, strict=True):
        for image, earlier in zip(read_pair(frame, "early"), then, strict=True):
            np.testing.assert_array_equal(image, earlier, strict=True)
            assert image is not None


def test_frames_are_spread_over_those_with_objects_unless_too_few_have() -> None:
    def frame(*boxes: tuple[int, int, int, int]) -> Frame:
        return Frame("", None, None, Annotations.from_rows(boxes, size=(512, 640)))

    frames = [frame((1, 2, 3, 4)) if place % 2 else frame() for place in range(10)]
    assert spread(frames, 3) == [1, 5, 9]
    assert spread(frames, 5) == [1, 3, 5, 7, 9]
    assert spread(frames, 6) == [0, 2, 4, 5, 7, 9]
    assert spread(frames, 99) == list(range(10))
    assert spread(frames, 0) == spread([], 3) == []


BREAK: dict[str, Callable[[Path, Path], object]] = {  # what is done to the root, or to the second frame's XML
    "root": lambda root, xml: shutil.rmtree(root),
    "annotations": lambda root, xml: shutil.rmtree(root / "annotations-xml"),
    "one annotation": lambda root, xml: xml.unlink(),
    "lwir": lambda root, xml: image_file(root, TRAIN[1], "lwir").unlink(),
    "xml": lambda root, xml: xml.write_text(xml.read_text()[:-9]),
}


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("root", SplitError, "no KAIST images there; looked for"),
        ("annotations", SplitError, "no KAIST annotations there; looked for the folder annotations-xml or"),
        ("one annotation", AnnotationError, r"I00003\.xml: missing, the annotation of"),
        ("lwir", ImageError, r"lwir/I00003\.jpg: missing, the lwir image of set00/V000/I00003"),
        ("xml", AnnotationError, r"I00003\.xml: not readable as XML"),
    ],
)
def test_a_bad_data_set_is_refused_in_one_sentence(how: str, kind: type[DataError], message: str, root: Path) -> None:
    BREAK[how](root, root / "annotations-xml" / f"{TRAIN[1]}.xml")
    with pytest.raises(kind, match=message) as error:
        DataSource("kaist", root).frames("train-all-02", modality="early")
    assert "\n" not in str(error.value)
    if kind is not SplitError:
        skipped: list[tuple[str, str]] = []
        left = DataSource("kaist", root).frames("train-all-02", modality="early", skipped=skipped)
        assert [frame.name for frame in left] == [TRAIN[0], *TRAIN[2:]]
        ((name, reason),) = skipped
        assert name == TRAIN[1] and str(error.value).startswith(reason)
        assert image_ids(left) == [0, *range(2, len(TRAIN))]  # image numbers stay those of the whole split


def test_empty_splits(root: Path) -> None:
    with pytest.raises(SplitError, match="split 'test-night-20' is empty; 5 frames were found there"):
        DataSource("kaist", root).frames("test-night-20")
    with pytest.raises(SplitError, match="is empty once 'train-all-01' is cut out of it"):
        DataSource("kaist", root).frames("train-all-02", exclude="train-all-01")
    with pytest.raises(SplitError, match="did you mean 'train-all-02'"):
        DataSource("kaist", root).frames("train-all02")
    with pytest.raises(SplitError, match="no such folder of annotations"):
        DataSource("kaist", root, annotations=root / "nowhere").frames("train-all-02")


def write_coco(root: Path, n: int, folder: str = "images") -> Path:
    root.mkdir(exist_ok=True)
    height, width = SIZE
    for i in range(n):
        write_image(root / folder / f"{i}.png", i, colour=True)
    document = {
        "images": [{"id": i, "file_name": f"{folder}/{i}.png", "height": height, "width": width} for i in range(n)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 10, 20]} for i in range(n)],
        "categories": [{"id": 1, "name": "person"}],
    }
    (root / "train.json").write_text(json.dumps(document))
    return root


def test_coco_modulo_rule(tmp_path: Path) -> None:
    write_coco(tmp_path, 23)
    assert len(DataSource("coco", tmp_path).frames("train.json")) == 23
    tenth = DataSource("coco", tmp_path).frames("train.json%10")
    assert [frame.name for frame in tenth] == ["images/9", "images/19"]
    assert image_ids(tenth) == [9, 19]  # the file's own
    rest = DataSource("coco", tmp_path).frames("train.json", exclude="train.json%10")
    assert len(rest) == 21
    assert not {frame.name for frame in rest} & {frame.name for frame in tenth}
    assert tenth[0].annotations.size == SIZE
    np.testing.assert_array_equal(tenth[0].annotations.boxes_xyxy, [[1, 2, 11, 22]])


def test_coco_errors(tmp_path: Path) -> None:
    write_coco(tmp_path, 3)
    with pytest.raises(SplitError, match=r"val\.json: no such COCO file; there are train\.json"):
        DataSource("coco", tmp_path).frames("val.json")
    with pytest.raises(SplitError, match=r"did you mean 'train\.json' or 'train\.json%10'"):
        DataSource("coco", tmp_path).frames("train.json%x")
    with pytest.raises(SplitError, match="is empty; 3 frames were found"):
        DataSource("coco", tmp_path).frames("train.json%10")
    with pytest.raises(ImageError, match="has no lwir image"):
        DataSource("coco", tmp_path).frames("train.json", modality="lwir")
    (tmp_path / "images/1.png").unlink()
    with pytest.raises(ImageError, match=r"images/1\.png: missing"):
        DataSource("coco", tmp_path).frames("train.json")


def test_a_truncated_png_is_refused_and_a_padded_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_image(path, 0, colour=True)
    whole = path.read_bytes()
    image = read_image(path, colour=True)
    path.write_bytes(whole + bytes(512))
    np.testing.assert_array_equal(read_image(path, colour=True), image)
    for cut in (1, 50, len(whole) - 10):
        path.write_bytes(whole[:-cut])
        with pytest.raises(ImageError, match=r"a\.png: the image is truncated"):
            read_image(path, colour=True)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_ends_where_its_own_end_marker_is(progressive: bool, tmp_path: Path) -> None:
    path, small = tmp_path / "a.jpg", BytesIO()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    picture.resize((16, 12)).save(small, "JPEG")
    exif = b"Exif\0\0" + small.getvalue()  # a thumbnail, with an end marker of its own
    picture.save(path, "JPEG", progressive=progressive, exif=exif, comment=b"\xff\xd9", quality=95)
    whole = path.read_bytes()
    assert whole.count(b"\xff\xd9") == 3
    image = read_image(path, colour=True)
    for film in (bytes(10_000), b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40, whole[:400]):
        path.write_bytes(whole + film)
        np.testing.assert_array_equal(read_image(path, colour=True), image)
    behind_the_small_one = whole.index(small.getvalue()) + len(small.getvalue())
    for end in (3, behind_the_small_one, *range(20, len(whole), len(whole) // 60), len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ImageError, match=r"a\.jpg: the image is truncated"):
            read_image(path, colour=True)


def test_other_unreadable_images(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with pytest.raises(ImageError, match=r"a\.jpg: cannot read the image \(No such file"):
        read_image(path, colour=True)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="the file is empty"):
        read_image(path, colour=True)
    path.write_bytes(b"not an image at all")
    with pytest.raises(ImageError, match="not an image that can be decoded"):
        read_image(path, colour=True)


def test_an_image_of_another_size_than_its_annotation_is_refused(root: Path) -> None:
    write_image(image_file(root, TRAIN[0], "lwir"), 0, colour=False, size=(24, 60))
    frame = DataSource("kaist", root).frames("train-all-02")[0]
    with pytest.raises(ImageError, match=r"lwir/I00001\.jpg: 60x24 pixels, but annotated for 60x48"):
        read_pair(frame, "early")


@pytest.mark.parametrize(("modality", "channels"), [("visible", 3), ("lwir", 1), ("early", 4), ("halfway", 4)])
def test_batches(modality: Modality, channels: int, root: Path) -> None:
    frames = DataSource("kaist", root).frames("train-all-02", modality=modality)
    data = DetectionDataset(frames, modality, Resize((24, 30)))
    batch = collate([data[i] for i in (3, 0)])
    assert batch.images.shape == (2, channels, 24, 30)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.boxes_xyxy.shape == (2, 3, 4)
    assert batch.targets.boxes_xyxy[0, 1].tolist() == [5, 2.5, 9, 12.5]
    assert batch.targets.labels.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert not batch.targets.ignore.any()
    assert batch.original_sizes.tolist() == [[48, 60]] * 2
    assert batch.indices.tolist() == [3, 0]
    assert batch.daytime.tolist() == [{"day": 1, "night": 0}[frames[i].annotations.daytime or ""] for i in (3, 0)]
    assert batch.names == [TRAIN[3], TRAIN[0]]
    empty = collate([data[0]]).targets  # one row of padding
    assert empty.boxes_xyxy.shape == (1, 1, 4) and not empty.is_object.any()
    assert DetectionDataset(frames, modality, Resize(SIZE), min_height=21)[3].ignore.all()
    sample = data[3]
    if sample.visible is not None:
        assert np.array_equal(batch.images[0, :3].permute(1, 2, 0).numpy(), sample.visible)
    if sample.lwir is not None:
        assert np.array_equal(batch.images[0, -1].numpy(), sample.lwir)


def test_batches_of_several_sizes_are_refused(root: Path) -> None:
    data = DetectionDataset(DataSource("kaist", root).frames("train-all-02"), "visible", RandomResizedCrop(p=1))
    with pytest.raises(ValueError, match="several sizes or modalities"):
        collate([data[0], data[1]])


def _batches(data: DetectionDataset, epoch: int, workers: int) -> Iterator[Batch]:
    sampler = EpochSampler(len(data), 2, train=True, seed=5)
    sampler.set_epoch(epoch)
    return iter(DataLoader(data, batch_size=2, sampler=sampler, collate_fn=collate, num_workers=workers))


def test_randomness_depends_on_seed_epoch_and_place_alone(root: Path) -> None:
    data = DetectionDataset(DataSource("kaist", root).frames("train-all-02"), "early", AUGMENT, seed=1)
    for alone, worked in zip(_batches(data, 3, 0), _batches(data, 3, 2), strict=True):
        assert alone.names == worked.names
        assert torch.equal(alone.images, worked.images)
        assert torch.equal(alone.targets.boxes_xyxy, worked.targets.boxes_xyxy)
    assert not np.array_equal(data[(0, 1)].visible, data[(1, 1)].visible)
    assert np.array_equal(data[1].visible, data[(0, 1)].visible)
    other = DetectionDataset(data.frames, "early", AUGMENT, seed=2)
    assert not np.array_equal(data[1].visible, other[1].visible)
    without_the_first = DetectionDataset(data.frames[1:], "early", AUGMENT, seed=1)  # as where it is bad and left out
    assert np.array_equal(data[1].visible, without_the_first[0].visible)


def test_mosaics_are_of_the_training_split_and_off_by_default(few_pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        "data_kaist.dataset.read_pair", lambda f, modality: read.append(f.name) or read_pair(f, modality)
    )
    data = ("augment.mosaic.p=1", "input.fit=letterbox", "input.modality=early")
    e = of_pairs(few_pairs, "augment.names=[mosaic,jitter,resized_crop,flip]", *data)
    for stage in ("train", "val"):
        dataset, most = build_dataset(e, stage), 0
        for epoch in range(8):
            read.clear()
            sample = dataset[(epoch, 1)]
            assert len(read) == (4 if stage == "train" else 1)
            assert sample.size == (64, 96)
            assert read[0] == dataset.frames[1].name
            assert set(read) <= {frame.name for frame in dataset.frames}
            most = max(most, len(set(read)))
        assert most > (2 if stage == "train" else 0)
    assert "mosaic" not in of_pairs(few_pairs).augment.names


def test_bad_frames_stop_or_are_skipped(root: Path) -> None:
    frames = DataSource("kaist", root).frames("train-all-02")
    truncate(image_file(root, TRAIN[1], "visible"))
    data = DetectionDataset(frames, "visible", Resize(SIZE))
    with pytest.raises(ImageError, match=r"I00003\.jpg: the image is truncated"):
        data[1]
    data = DetectionDataset(frames, "visible", Resize(SIZE), on_bad_frame="skip")
    assert [frame.name for frame in data.frames] == [TRAIN[0], *TRAIN[2:]]
    ((name, reason),) = data.skipped
    assert name == TRAIN[1] and "truncated" in reason
    assert len(DetectionDataset(frames, "lwir", Resize(SIZE), on_bad_frame="skip")) == 4
    with pytest.raises(SplitError, match="none of the 1 frames can be read"):
        DetectionDataset(frames[1:2], "visible", Resize(SIZE), on_bad_frame="skip")


def test_sampler() -> None:
    sampler = EpochSampler(10, 2, train=True, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    assert sorted(first) == [(0, i) for i in range(10)]
    sampler.set_epoch(1)
    assert [place for _, place in sampler] != [place for _, place in first]
    assert {epoch for epoch, _ in sampler} == {1}
    assert list(EpochSampler(3, 2, train=False)) == [(0, 0), (0, 1), (0, 2)]
    assert list(EpochSampler(10, 2, train=True, seed=2)) != first


def _rounds(length: int, batch_size: int, world: int, *, train: bool) -> list[list[list[int]]]:
    """The batches of each process, by round."""
    shares = []
    for rank in range(world):
        sampler = EpochSampler(length, batch_size, train=train, seed=3, rank=rank, world_size=world)
        places = [place for _, place in sampler]
        assert len(places) == len(sampler)
        shares.append([places[i : i + batch_size] for i in range(0, len(places), batch_size)])
    return list(zip(*shares, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(("length", "batch_size", "world"), [(20, 4, 2), (23, 2, 3), (7, 1, 4), (16, 8, 1)])
def test_a_round_of_training_is_the_batch_of_one_process(length: int, batch_size: int, world: int) -> None:
    rounds = _rounds(length, batch_size, world, train=True)
    alone = _rounds(length, batch_size * world, 1, train=True)
    whole = [batch for (batch,) in alone if len(batch) == batch_size * world]  # the loader drops the rest
    assert [[place for batch in batches for place in batch] for batches in rounds] == whole
    assert len(whole) == length // (batch_size * world)


@pytest.mark.parametrize(("length", "batch_size", "world"), [(20, 4, 2), (23, 4, 3), (3, 4, 2), (9, 2, 4), (8, 4, 1)])
def test_evaluation_has_the_batches_of_one_process_in_any_number(length: int, batch_size: int, world: int) -> None:
    rounds = _rounds(length, batch_size, world, train=False)
    alone = [batch for (batch,) in _rounds(length, batch_size, 1, train=False)]
    taken = [batch for batches in rounds for batch in batches]
    assert taken[: len(alone)] == alone
    assert all(batch in alone for batch in taken) and len(taken) - len(alone) < world


def test_fingerprint_sees_every_change(root: Path) -> None:
    frames = DataSource("kaist", root).frames("train-all-02")
    before = fingerprint(frames)
    assert fingerprint(DataSource("kaist", root).frames("train-all-02")) == before
    assert fingerprint(frames[::-1]) != before
    of = frames[3].annotations
    other = "night" if of.daytime == "day" else "day"
    for changed in (replace(of, boxes_xyxy=of.boxes_xyxy + 1), replace(of, daytime=other), replace(of, daytime=None)):
        assert fingerprint([*frames[:3], replace(frames[3], annotations=changed)]) != before
