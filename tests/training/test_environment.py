"""What a run says of its code: the commit of this project and no other, and how the tree differed from it."""

import hashlib
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import nn

from ssd_effnet.study.records import Run
from ssd_effnet.training import environment
from ssd_effnet.training.environment import code_name, code_patch, git_state
from ssd_effnet.training.run_directory import RunDirectory, describe_environment


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This code in a repository of its own, with one file and one commit."""
    root = tmp_path / "project"
    (root / "ssd_effnet").mkdir(parents=True)
    (root / "ssd_effnet" / "loss.py").write_text("weight = 1\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    monkeypatch.setattr(environment, "__file__", str(root / "ssd_effnet" / "training" / "environment.py"))
    return root


def test_a_hook_of_another_repository(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q", "hooked")
    commit = git(project, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "hooked" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "hooked" / ".git" / "index"))
    assert git_state() == {"commit": commit, "dirty": False}


def test_an_exported_tree_says_why(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / ".git").rename(tmp_path / ".git")  # the thesis around it
    state = git_state()
    assert state["commit"] == "unknown" and f"a folder of the one in {tmp_path}" in state["reason"]
    (tmp_path / ".git").rename(tmp_path / "away")
    assert git_state()["commit"] == "unknown" and "not a git repository" in git_state()["reason"]
    monkeypatch.setenv("PATH", "")
    assert "git cannot be asked" in git_state()["reason"]


def test_changes_and_new_sources_are_a_patch_that_applies(project: Path, tmp_path: Path) -> None:
    clean = git(project, "rev-parse", "HEAD")
    (project / "ssd_effnet" / "loss.py").write_text("weight = 2\n")
    (project / "ssd_effnet" / "é new.py").write_text("x = 1\n")
    (project / "notes.txt").write_text("no code")
    (project / ".gitignore").write_text("*.log\n")  # no source either
    state, patch = git_state(), code_patch()
    assert state == {"commit": clean, "dirty": True, "diff": hashlib.sha256(patch).hexdigest()}
    assert code_name(state) == f"{clean[:7]}+{state['diff'][:7]}" and b"notes" not in patch
    git(tmp_path, "clone", "-q", str(project), "again")
    (tmp_path / "patch").write_bytes(patch)
    git(tmp_path / "again", "apply", str(tmp_path / "patch"))
    assert (tmp_path / "again" / "ssd_effnet" / "é new.py").read_text() == "x = 1\n"
    assert (tmp_path / "again" / "ssd_effnet" / "loss.py").read_text() == "weight = 2\n"
    assert git(project, "status", "--porcelain", "-uno") == "M ssd_effnet/loss.py"  # the index is as it was
    (project / "ssd_effnet" / "loss.py").write_text("weight = 3\n")
    assert git_state()["diff"] != state["diff"]


def test_the_device_is_the_one_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on the CPU of a machine with a GPU is not the GPU's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    assert describe_environment({}, nn.Identity(), gpu=True)["device"] == "a card"
    assert describe_environment({}, nn.Identity(), gpu=False)["device"].endswith(" cores")


def test_the_patch_lies_beside_the_environment(project: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")

    def remember(*, resumed: bool) -> None:
        directory.remember(describe_environment({}, nn.Identity()), resumed=resumed)

    def name() -> str:
        return Run.commit.__get__(cast(Run, SimpleNamespace(environment=directory.environment())))

    remember(resumed=False)
    assert not list(directory.path.glob("*.patch")) and "+" not in name()
    for weight in (2, 3, 3):
        (project / "ssd_effnet" / "loss.py").write_text(f"weight = {weight}\n")
        remember(resumed=weight == 3)
    patches = {file.name for file in directory.path.glob("*.patch")}
    assert patches == {"code.patch", "code.1.patch", "code.2.patch"}
    assert b"+weight = 2" in (directory.path / "code.patch").read_bytes()
    assert b"+weight = 3" in (directory.path / "code.1.patch").read_bytes()
    assert name().count(", then ") == 1 and name().count("+") == 2
    directory.start_over()
    assert not directory.environment_file.exists() and not (directory.path / "code.patch").exists()
