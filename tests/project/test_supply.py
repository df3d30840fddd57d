"""What an installation brings: extras declared once, every version pinned, every file's hash known, licences listed."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"^([\w.-]+)==([^\s\\;#]+)", re.MULTILINE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()


def pins(text: str) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in PIN.findall(text)}


def test_the_pins_are_those_of_the_declared_dependencies_and_allowed_by_them() -> None:
    declared = {canonicalize_name(r.name): r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    pinned = pins((ROOT / "requirements.txt").read_text())
    assert pinned.keys() == declared.keys()
    assert [name for name, version in pinned.items() if version not in declared[name]] == []


def test_the_lock_holds_all_that_the_package_and_its_extras_need_with_hashes() -> None:
    locked = pins(LOCK)
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(r for e in ("export", "search", "docs", "dev") for r in extras[e])]
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name not in ("ssd-effnet", "torch"):  # torch's CPU and CUDA builds are different files of one version
            assert locked[name] in requirement.specifier, f"{requirement}: `make lock` after changing a dependency"
    for name, version in pins((ROOT / "requirements.txt").read_text()).items():
        assert name == "torch" or locked[name] == version
    assert locked["opencv-python-headless"] == locked["opencv-python"]
    for block in re.split(r"(?m)^(?=[\w.-]+==)", LOCK)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block


def test_the_set_up_installs_by_hash() -> None:
    made = subprocess.run(["make", "-n", "-B", "setup"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in made.splitlines() if line.endswith("-r .venv/requirements.lock")]
    assert "--require-hashes" in line and "--no-deps" in line


def test_a_checkout_keeps_the_line_ends_of_scripts(tmp_path: Path) -> None:
    """Git for Windows sets ``core.autocrlf``: a first line that ends in a carriage return names no interpreter."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    clone, settings = tmp_path / "clone", ("-c", "core.autocrlf=true", "-c", "core.eol=crlf")
    subprocess.run(["git", "init", "-q", str(clone)], check=True)
    for name in (".gitattributes", "scripts/train.py"):
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_bytes((ROOT / name).read_bytes())
    for command in (["add", "."], ["rm", "-q", "--cached", "scripts/train.py"], ["add", "scripts"]):
        subprocess.run(["git", "-C", str(clone), *settings, *command], check=True, capture_output=True)
    (clone / "scripts" / "train.py").unlink()
    subprocess.run(["git", "-C", str(clone), *settings, "checkout", "--", "scripts"], check=True, capture_output=True)
    assert b"\r" not in (clone / "scripts" / "train.py").read_bytes()


@pytest.mark.slow
def test_a_wheel_holds_the_experiments(tmp_path: Path) -> None:
    """An installed ``ssd-effnet`` finds them by name."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    shutil.copy(ROOT / "setup.py", tmp_path)
    for package in ("ssd_effnet", "data_kaist"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "built"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    code = "from ssd_effnet.config import loading as l; print(l.EXPERIMENTS, l.load_experiment('lite0').name)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "built")}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=tmp_path / "built", capture_output=True, text=True, env=environment)
    assert done.stdout.split() == [str(tmp_path / "built" / "ssd_effnet" / "experiments"), "lite0"], done.stderr
    shipped = {path.name for path in (tmp_path / "built" / "ssd_effnet" / "experiments").rglob("*") if path.is_file()}
    assert shipped == {path.name for path in (ROOT / "experiments").rglob("*.yaml")}
    assert (tmp_path / "built" / "ssd_effnet" / "detectors" / "people.safetensors").is_file()
