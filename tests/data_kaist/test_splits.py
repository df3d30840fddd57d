"""Frame names and split rules, against the official lists."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from data_kaist.errors import SplitError
from data_kaist.splits import STUDY_VALIDATION, FrameName, daytime_of, is_frame_name, parse_split, select


@pytest.fixture(scope="module")
def all_names(shared: Path) -> list[str]:
    """The 95,324 frames of KAIST, as the names of their annotation files."""
    tar = ["tar", "-tzf", str(shared / "reference/kaist/annotations-xml.tar.gz")]  # five times as fast as tarfile
    files = subprocess.run(tar, capture_output=True, text=True, check=True).stdout.splitlines()
    return ["/".join(name.split("/")[1:])[:-4] for name in files if name.endswith(".xml")]


def test_rules_reproduce_the_official_lists(shared: Path, all_names: list[str]) -> None:
    assert len(all_names) == 95_324
    lists = json.loads((shared / "reference/kaist/official_splits.json").read_text())
    assert len(lists) >= 6
    for split, expected in lists.items():
        names = select(all_names, split)
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
        found = {"frames": len(names), "first": names[0], "last": names[-1], "sha256_of_lf_joined_names": digest}
        assert found == expected, split


def test_the_study_s_validation_split(all_names: list[str]) -> None:
    names = select(all_names, STUDY_VALIDATION)
    assert (len(names), names[0], names[-1]) == (69, "set02/V001/I00121", "set02/V001/I00189")
    assert len(set(select(all_names, "train-all-02")) - set(names)) == 25_086 - 35


def test_select_sorts_and_filters() -> None:
    names = ["set06/V001/I00039", "set06/V000/I00019", "set06/V000/I00020", "set00/V000/I00019", "set09/V000/I00019"]
    assert select(names, "test-all-20") == ["set06/V000/I00019", "set06/V001/I00039", "set09/V000/I00019"]
    assert select(names, "test-day-20") == ["set06/V000/I00019", "set06/V001/I00039"]
    assert select(names, "test-night-20") == ["set09/V000/I00019"]
    assert select(names, "train-all-02") == ["set00/V000/I00019"]
    assert select(names, "set06/V000/I00020-I00020") == ["set06/V000/I00020"]
    assert select([], "train-all-01") == []


def test_names() -> None:
    name = FrameName.parse("set06/V001/I00459")
    assert (name.set, name.video, name.number, str(name)) == (6, 1, 459, "set06/V001/I00459")
    assert [daytime_of(f"set{s:02d}/V000/I00000") for s in range(13)] == [*(["day"] * 3 + ["night"] * 3) * 2, None]
    assert daytime_of("images/FudanPed00001") is None
    assert not is_frame_name("set6/V001/I00459")
    with pytest.raises(SplitError, match="'set6/V1' is not a KAIST frame name"):
        FrameName.parse("set6/V1")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train-al-02", "train-all-02"),
        ("Test-All-20", "test-all-20"),
        ("trian-nigth-02", "train-night-02"),
        ("test-all-00", "test-all-01"),
        ("set02/V001/I00121", STUDY_VALIDATION),
        ("validation", "train-all-02"),  # resembles nothing: both forms are shown
    ],
)
def test_a_wrong_split_is_answered_with_the_nearest_right_one(wrong: str, right: str) -> None:
    with pytest.raises(SplitError) as error:
        parse_split(wrong)
    assert repr(right) in str(error.value)
    parse_split(right)
