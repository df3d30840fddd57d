"""Versions, device and commit, for run directories and reports."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data_kaist.errors import RequestError

PACKAGES = ("torch", "lightning", "numpy", "opencv-python", "opencv-python-headless", "efficientnet-pytorch")
_SOURCES = (b".py", b".html", b".sh", b".toml")  # files that decide what the code does
_MOST_FILES = 1000  # untracked files, in a patch


def describe_machine(gpu: bool) -> dict[str, Any]:
    """Versions, device, threads, commit, command and time, as plain data."""
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name() if gpu else f"{processor()}, {cores()} cores",
        "threads": torch.get_num_threads(),
        "git": git_state(),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def machine_line(device: str, threads: int, how: str) -> str:
    """One line: machine, versions and ``how`` of a measurement."""
    if device != "cpu":
        where = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        where = f"{processor()}, {cores()} cores, {threads or torch.get_num_threads()} threads"
    return f"{where}; Python {platform.python_version()}, torch {torch.__version__}; {how}"


def usable_device(name: str | torch.device) -> torch.device:
    """The device of that name, after a trial. ``auto``: a GPU if available."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"device {str(name)!r} is unknown; it should be auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RequestError(f"device {str(name)!r}: torch finds {torch.cuda.device_count()} CUDA devices here")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise RequestError(f"device {str(name)!r}: torch finds none here; take auto, cpu, cuda or cuda:1") from error
    return device


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Name of the processor, where the system provides it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def git_state() -> dict[str, Any]:
    """Commit of this code, and a hash of its changes.

    Returns:
        ``{"commit", "dirty"}``; with changes also ``diff``, the hash of :func:`code_patch`. Where the code is in no
        repository of its own ``{"commit": "unknown", "reason": ...}``: an exported tree may lie in another one's.
    """
    project = Path(__file__).resolve().parents[2]
    try:
        top = Path(os.fsdecode(_git("rev-parse", "--show-toplevel").rstrip(b"\n")))
        if top.resolve() != project:
            return {"commit": "unknown", "reason": f"{project} is no repository, but a folder of the one in {top}"}
        commit = _git("rev-parse", "HEAD").decode().strip()
        patch = code_patch()
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.decode(errors="replace").split())
        return {"commit": "unknown", "reason": f"git in {project}: {said}"}
    except (OSError, subprocess.SubprocessError) as error:
        return {"commit": "unknown", "reason": f"git cannot be asked: {error}"}
    return {"commit": commit, "dirty": bool(patch)} | ({"diff": hashlib.sha256(patch).hexdigest()} if patch else {})


def code_patch() -> bytes:
    """Patch from the commit to this code, with untracked source files."""
    listed = _git("ls-files", "-z", "--others", "--exclude-standard").split(b"\0")
    index = Path(__file__).resolve().parents[2] / os.fsdecode(_git("rev-parse", "--git-path", "index").rstrip(b"\n"))
    with tempfile.TemporaryDirectory() as folder:
        ours = shutil.copy2(index, folder)  # intent-to-add goes into this copy of the index, whose time git compares
        new = [name for name in listed if name.endswith(_SOURCES)][:_MOST_FILES]
        if new:
            names = ("--pathspec-from-file=-", "--pathspec-file-nul")
            _git("add", "--intent-to-add", *names, given=b"\0".join(new), index=ours)
        plain = ("--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
        return _git("diff", *plain, "--full-index", "HEAD", index=ours)


def code_name(git: Mapping[str, Any]) -> str:
    """Short form of :func:`git_state`: ``1a2b3c4``, with changes ``1a2b3c4+5d6e7f8``."""
    return str(git.get("commit", "unknown"))[:7] + (f"+{git.get('diff', '')[:7]}" if git.get("dirty") else "")


def _git(*arguments: str, given: bytes = b"", index: str = "") -> bytes:
    """Run git on this code, without a hook's GIT_DIR and similar variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_INDEX_FILE": index} if index else {}
    command = ["git", "-C", str(Path(__file__).resolve().parents[2]), "--literal-pathspecs", *arguments]
    return subprocess.run(command, input=given, capture_output=True, check=True, timeout=20, env=environment).stdout


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None
