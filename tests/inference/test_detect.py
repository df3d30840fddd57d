"""scripts/detect.py and what is below it: every kind of input, files that fit together, bad files, no lost work."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import command
from pycocotools.coco import COCO
from untrained import Stop, write_checkpoint

from data_kaist.coco import read_coco
from data_kaist.detections import read_detections
from data_kaist.errors import DataError
from ssd_effnet import load_detector
from ssd_effnet.inference.detect import detect
from ssd_effnet.inference.predictor import Predictor
from ssd_effnet.inference.sources import Still, Video, find_sources, frame_count, frames_a_second, read_video
from ssd_effnet.inference.video import AnnotatedVideos

RANDOM = np.random.default_rng(0)
FRAMES = 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "visible.ckpt")


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return load_detector(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def of_pairs(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load_detector(write_checkpoint(tmp_path_factory.mktemp("c") / "early.ckpt", "input.modality=early"))


def image(path: Path, size: tuple[int, int] = (72, 104), channels: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.integers(0, 256, (*size, channels), dtype=np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
    return path


def film(path: Path, frames: int = FRAMES, size: tuple[int, int] = (72, 104), fps: float = 12.0) -> Path:
    """Grey frames, the first ones of them brighter and brighter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, size[::-1])
    for i in range(frames):
        writer.write(np.full((*size, 3), (10 + 20 * i) % 250, np.uint8))
    writer.release()
    return path


def pairs(root: Path, names: tuple[str, ...] = ("I00019", "I00039")) -> Path:
    for name in names:
        image(root / "images" / "set06" / "V000" / "visible" / f"{name}.jpg")
        image(root / "images" / "set06" / "V000" / "lwir" / f"{name}.jpg", channels=1)
    return root


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_folders_and_single_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.jpg", "deep/er/B.PNG", 'deep/it\'s «große» "写真".png', "deep/[1].tiff"]
    for name in names:
        image(tmp_path / "in" / name)
    film(tmp_path / "in" / "c.avi")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    image(tmp_path / "in" / "deep" / ".hidden.jpg")
    found = find_sources([tmp_path / "in"])
    assert [source.name for source in found] == ["a.jpg", "c.avi", names[3], names[2], names[1]]
    assert isinstance(found[1], Video) and isinstance(found[0], Still) and found[0].lwir is None
    assert [s.name for s in find_sources([tmp_path / "in" / "deep" / "[1].tiff"])] == ["[1].tiff"]  # no pattern
    monkeypatch.chdir(tmp_path)
    assert [s.name for s in find_sources(["in/a.jpg", "./in"])][:2] == ["a.jpg", "c.avi"]
    assert len(find_sources(["in"], leave_out=tmp_path / "in" / "deep")) == 2
    (tmp_path / "none").mkdir()
    for wrong, message in (("no", "there is no such file or folder"), ("none", "no image or video there")):
        with pytest.raises(DataError, match=message):
            find_sources([wrong])


def test_equal_names_of_several_folders_stay_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        image(tmp_path / folder / "1.jpg")
    assert [s.name for s in find_sources([tmp_path / "a", tmp_path / "b"])] == ["a/1.jpg", "b/1.jpg"]


def test_pairs_are_found_by_layout(tmp_path: Path) -> None:
    video = pairs(tmp_path) / "images" / "set06" / "V000"
    for alone in ("I00009", "I00059"):
        image(video / "visible" / f"{alone}.jpg")  # without partner
    for given in (tmp_path, video, video / "visible"):
        found = find_sources([given])
        names = [f"visible/I000{n}.jpg" for n in ("09", 19, 39, 59)]
        assert [f"{s.path.parent.name}/{s.path.name}" for s in found if isinstance(s, Still)] == names
        assert [isinstance(s, Still) and s.lwir is not None for s in found] == [False, True, True, False]
    (one,) = find_sources([video / "lwir" / "I00019.jpg"])
    assert isinstance(one, Still) and one.visible == video / "visible" / "I00019.jpg"
    (one,) = find_sources([file := image(tmp_path / "visible" / "night" / "lwir" / "a.png")])  # the nearest folder's
    assert isinstance(one, Still) and (one.visible, one.lwir) == (None, file)


def test_everything_is_written_and_fits_together(checkpoint: Path, predictor: Predictor, tmp_path: Path) -> None:
    first = image(tmp_path / "in" / "it's «große» 写真.png")
    image(tmp_path / "in" / "sub" / "b.jpg", (100, 60))
    film(tmp_path / "in" / "film.avi")
    out = tmp_path / "new" / "out"
    done = command("detect", checkpoint, tmp_path / "in", "--out", out, "--score", 0.1, "--batch", 3)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("9 images, ")
    assert files_below(out) == {
        *("it's «große» 写真.png", "sub/b.jpg", "film.avi.webm"),
        *("detections.json", "images.json", "detections_kaist.txt"),
    }

    images = json.loads((out / "images.json").read_text())["images"]
    names = [f"film.avi#{i:06d}" for i in range(1, FRAMES + 1)]
    assert [entry["file_name"] for entry in images] == [*names, "it's «große» 写真.png", "sub/b.jpg"]
    assert [entry["id"] for entry in images] == list(range(9))
    assert (images[8]["height"], images[8]["width"]) == (100, 60)
    assert read_coco(out / "images.json").names[8] == "sub/b"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(out / "images.json")
        results = truth.loadRes(str(out / "detections.json"))
    assert results.getAnnIds(imgIds=[8]) and results.loadCats([1])[0]["name"] == "person"

    coco, kaist = read_detections(out / "detections.json", 9), read_detections(out / "detections_kaist.txt", 9)
    np.testing.assert_array_equal(coco.image_index, kaist.image_index)
    np.testing.assert_array_equal(coco.scores, kaist.scores)
    np.testing.assert_allclose(coco.boxes_xyxy, kaist.boxes_xyxy)
    (alone,) = predictor.predict([first], score=0.1)
    np.testing.assert_allclose(coco.of_image(7).boxes_xyxy, alone.boxes_xyxy, atol=0.01)

    drawn = cv2.imdecode(np.fromfile(out / first.name, np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape[1] == 104 and drawn.shape[0] > 72  # the legend is below
    assert frame_count(Video("x", out / "film.avi.webm")) == FRAMES
    assert len(list(read_video(Video("x", out / "film.avi.webm")))) == FRAMES


def test_only_what_is_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    given = (checkpoint, image(tmp_path / "a.jpg"), film(tmp_path / "b.avi"), "--out", tmp_path / "out")
    assert command("detect", *given, "--no-pictures").returncode == 0
    assert files_below(tmp_path / "out") == {"detections.json", "images.json", "detections_kaist.txt"}
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == 1 + FRAMES


def test_pairs_side_by_side(of_pairs: Predictor, predictor: Predictor, tmp_path: Path) -> None:
    root, file = pairs(tmp_path / "root"), "images/set06/V000/visible/I00039.jpg"
    for name, who, width in (("early", of_pairs, 2 * 104 + 4), ("visible", predictor, 104)):
        summary = detect(who, find_sources([root]), tmp_path / name)
        assert summary.images == 2
        assert cv2.imread(str(tmp_path / name / file)).shape[1] == width
    with pytest.raises(DataError, match=r"alone\.jpg: has no lwir image beside it"):
        detect(of_pairs, find_sources([image(tmp_path / "alone.jpg")]), tmp_path / "out")
    with pytest.raises(DataError, match=r"a\.avi: early needs pairs \(visible, lwir\), and a video is not one"):
        detect(of_pairs, find_sources([film(tmp_path / "a.avi")]), tmp_path / "out")
    assert not (tmp_path / "out").exists()  # nothing was found, so nothing is written


def test_lwir_alone(tmp_path: Path) -> None:
    predictor = load_detector(write_checkpoint(tmp_path / "lwir.ckpt", "input.modality=lwir"))
    image(tmp_path / "in" / "a.png", channels=1)
    film(tmp_path / "in" / "b.avi")
    assert detect(predictor, find_sources([tmp_path / "in"], side="lwir"), tmp_path / "out").images == 1 + FRAMES


def test_a_bad_file_stops_the_work_or_is_left_out(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        image(tmp_path / "in" / name)
    bad = tmp_path / "in" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:1000])
    out = tmp_path / "stop"
    done = command("detect", checkpoint, tmp_path / "in", "--out", out, "--batch", 8)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{bad}: the image is truncated" in done.stderr and done.stderr.count("\n") == 1
    assert files_below(out) == {"1.jpg", "detections.json", "images.json", "detections_kaist.txt"}
    assert [entry["id"] for entry in json.loads((out / "images.json").read_text())["images"]] == [0]

    out = tmp_path / "skip"
    done = command("detect", checkpoint, tmp_path / "in", "--out", out, "--on-bad-frame", "skip")
    assert done.returncode == 0 and "2 images, " in done.stdout and "1 bad file left out" in done.stdout
    assert f"left out: {bad}: " in done.stderr
    done = command("detect", checkpoint, bad, "--out", tmp_path / "none", "--on-bad-frame", "skip")
    assert done.returncode == 1 and "0 images" in done.stdout and "written" not in done.stdout
    assert [entry["id"] for entry in json.loads((out / "images.json").read_text())["images"]] == [0, 2]


def test_people_are_called_person_whatever_the_class_is_called(tmp_path: Path) -> None:
    human = load_detector(write_checkpoint(tmp_path / "c.ckpt", "data.classes={human: [person]}"), device="cpu")
    detect(human, find_sources([image(tmp_path / "1.jpg")]), tmp_path / "out", pictures=False)
    written = json.loads((tmp_path / "out" / "images.json").read_text())
    assert human.classes == ("human",) and written["categories"] == [{"id": 1, "name": "person"}]


def test_results_of_former_images_do_not_stay_beside_none(predictor: Predictor, tmp_path: Path) -> None:
    good, bad, out = image(tmp_path / "1.jpg"), tmp_path / "2.jpg", tmp_path / "out"
    assert detect(predictor, find_sources([good]), out, pictures=False).images == 1 and len(files_below(out)) == 3
    bad.write_bytes(good.read_bytes()[:1000])
    assert detect(predictor, find_sources([bad]), out, pictures=False, on_bad_frame="skip").bad == 1
    assert not files_below(out)


def test_a_truncated_video_is_told_and_the_rest_is_done(predictor: Predictor, tmp_path: Path) -> None:
    whole = film(tmp_path / "film.avi", 40)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    said: list[str] = []
    summary = detect(predictor, find_sources([whole]), tmp_path / "out", echo=said.append)
    assert 0 < summary.images < 30
    assert len(said) == 1 and f"has {summary.images} of the 40 stated frames" in said[0]
    assert frame_count(Video("x", tmp_path / "out" / "film.avi.webm")) == summary.images


@pytest.mark.parametrize(("stated", "of_copy"), [(300, 300), (0.05, 25)])
def test_a_copy_plays_as_fast_as_its_film(stated: float, of_copy: float, predictor: Predictor, tmp_path: Path) -> None:
    said: list[str] = []
    given = find_sources([film(tmp_path / "a.avi", fps=stated)])
    assert detect(predictor, given, tmp_path / "out", echo=said.append).images == FRAMES
    assert frames_a_second(Video("x", tmp_path / "out" / "a.avi.webm")) == of_copy
    assert ["its annotated copy plays at 25/s" in sentence for sentence in said] == [True] * (stated != of_copy)


def test_inputs_are_never_overwritten(checkpoint: Path, predictor: Predictor, tmp_path: Path) -> None:
    picture = image(tmp_path / "a.jpg")
    before = picture.read_bytes()
    done = command("detect", checkpoint, picture, "--out", tmp_path)
    assert done.returncode == 1 and "no image or video there" in done.stderr  # what lies in --out is no input
    with pytest.raises(DataError, match=r"a\.jpg: would be overwritten"):
        detect(predictor, find_sources([picture]), tmp_path)
    assert picture.read_bytes() == before
    with pytest.raises(DataError, match=r"a\.jpg: is a file, not a folder"):
        detect(predictor, find_sources([picture]), picture)
    shutil.copy(image(tmp_path / "in" / "b.png"), tmp_path / "in" / "b")  # a png, whatever it is called
    with pytest.raises(DataError, match=r"out.b\.png: would be overwritten, and it is the picture of b, too"):
        detect(predictor, find_sources([tmp_path / "in"]), tmp_path / "out")
    assert detect(predictor, find_sources([tmp_path / "in"]), tmp_path / "o", pictures=False).images == 2
    (run := tmp_path / "seed0").mkdir()
    (run / "config.yaml").touch()
    done = command("detect", checkpoint, picture, "--out", run, "--no-pictures")
    assert done.returncode == 1 and "is a run's folder" in done.stderr and files_below(run) == {"config.yaml"}


def test_where_no_video_can_be_written(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssd_effnet.inference.video.CODEC", "what")
    with pytest.raises(OSError, match=r"a\.avi\.webm: OpenCV can write no video here; --no-pictures"):
        detect(predictor, find_sources([film(tmp_path / "a.avi")]), tmp_path / "out")


def test_a_film_that_cannot_be_read_back_is_an_error(tmp_path: Path) -> None:
    videos = AnnotatedVideos(tmp_path / "out")
    videos.add(Video("x.avi", film(tmp_path / "x.avi")), np.zeros((64, 64, 3), np.uint8), 0)
    assert videos.writer is not None
    videos.writer.release()
    videos.beside.write_bytes(b"")
    with pytest.raises(OSError, match="1 frames were written, 0 can be read"):
        videos.close()


def test_what_was_found_stands_whatever_ends_the_work(predictor: Predictor, tmp_path: Path) -> None:
    seen: list[int] = []

    def stop_after_four() -> None:
        seen.append(1)
        if len(seen) == 4:
            raise Stop

    given = find_sources([film(tmp_path / "a.avi")])
    with pytest.raises(Stop):
        detect(predictor, given, tmp_path / "out", batch_size=2, on_image=stop_after_four)
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == 4
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {row["image_id"] for row in found} == set(range(4))
    assert frame_count(Video("x", tmp_path / "out" / "a.avi.webm")) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{c}", "--out", "o"), 2, "is a detector; behind it come images"),
        (("people", "--out", "o"), 2, "is a detector; behind it come images"),
        (("--out", "o"), 2, "INPUT"),
        (("nothing.jpg", "--out", "o"), 1, "error: nothing.jpg: there is no such file or folder"),
        (("runs/other/seed0", "x.jpg", "--out", "o"), 1, "error: runs/other/seed0: there is no such checkpoint"),
        (("{c}", "x.jpg", "--out", "o", "--score", "3"), 2, r"should lie in 0..1"),
        (("{c}", "nothing.jpg", "--out", "o"), 1, "error: nothing.jpg: there is no such file or folder"),
        (("{c}", "x.jpg", "--out", "o", "--device", "vulkan"), 1, "error: device 'vulkan': torch finds none here"),
        (("{c}", "x.jpg", "--out", "o", "--zoom", "nan"), 1, "error: zoom must lie in 0.1..10, not nan"),
        (("no.ckpt", "x.jpg", "--out", "o"), 1, "error: no.ckpt: there is no such checkpoint"),
    ],
)
def test_wrong_arguments(checkpoint: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = command("detect", *(a.replace("{c}", str(checkpoint)) for a in arguments))
    assert done.returncode == code and message in done.stderr.splitlines()[-1]
