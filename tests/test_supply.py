"""What `make setup` installs: every version pinned, every file's hash known, every licence listed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([\w.-]+)==([^\s\\;#]+)", re.MULTILINE)
FILES = sorted(ROOT.glob("requirements*.txt"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    return {canonical(name): version for name, version in PIN.findall(text)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_requirement_is_pinned(path: Path) -> None:
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    for line in lines:
        assert not line or line.startswith("-r ") or PIN.match(line), f"{path.name}: {line}"


def test_the_lock_holds_what_the_files_pin_with_hashes() -> None:
    installed = [path for path in FILES if path.name != "requirements-cluster.txt"]  # by `make setup`; Ray is not
    wanted = {name: version for path in installed for name, version in pins(path.read_text()).items()}
    wanted["opencv-python-headless"] = wanted["opencv-python"]  # where there is no screen
    del wanted["torch"]  # its CPU and CUDA builds are different files of one version
    text = (ROOT / "requirements.lock").read_text()
    assert pins(text) == wanted, "say `make lock` after changing a pin"
    blocks = re.split(r"(?m)^(?=[\w.-]+==)", text)[1:]
    assert len(blocks) == len(wanted)
    for block in blocks:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block


def test_setup_installs_by_the_lock() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "--require-hashes --no-deps" in makefile
    installs = [line for line in makefile.splitlines() if line.startswith(("\t$(PIP)", "\t$(LOCKED)"))]
    unlocked = [line for line in installs if "$(LOCKED)" not in line]
    assert len(installs) == 4 and len(unlocked) == 2
    assert "torch==" in unlocked[0] and "--editable ." in unlocked[1]


def test_the_licence_list_is_that_of_the_lock() -> None:
    listed = dict(re.findall(r"^\| ([\w.-]+) \| (\d\S*) \|", (ROOT / "docs" / "licences.md").read_text(), re.MULTILINE))
    locked = pins((ROOT / "requirements.lock").read_text()) | {"torch": listed["torch"]}
    either = {"opencv-python", "opencv-python-headless"}  # the list says what is installed where it was made
    assert len(either & listed.keys()) == 1
    assert {n: v for n, v in listed.items() if n not in either} == {n: v for n, v in locked.items() if n not in either}
