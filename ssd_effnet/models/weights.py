"""Weights: download with hash check, safe reading, loading by name.

Missing, unexpected and misshapen tensors are in the report.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import pickle
import socket
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from data_kaist.errors import Failure

TIMEOUT_SECONDS = 30
PREFIX = "detector."
"""The training module's name of the detector."""
SAFETENSORS = ".safetensors"

_log = logging.getLogger(__name__)


class WeightsError(Failure, ValueError):
    """Weights are not available, readable or usable."""


@dataclass(frozen=True)
class LoadReport:
    """Result of loading a file's tensors into a module.

    Names of tensors: copied; in the module only, where they keep their values; in the file only; of another shape
    (name, the module's shape, the file's). ``adapted``: remarks on tensors that were changed to fit.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    source: str = ""
    adapted: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded" + (f" from {self.source}" if self.source else "")]
        if self.adapted:
            parts.append(f"adapted to the input's channels: {', '.join(self.adapted)}")
        if self.missing:
            parts.append(f"{len(self.missing)} not in the file: {_by_part(self.missing)}")
        if self.misshapen:
            shapes = ", ".join(f"{name} is {ours} and in the file {theirs}" for name, ours, theirs in self.misshapen)
            parts.append(f"{len(self.misshapen)} of another shape: {shapes}")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} of the file unused: {_by_part(self.unexpected)}")
        return "; ".join(parts)


def _by_part(names: Sequence[str]) -> str:
    """Names counted by part: ``_fc.weight, _fc.bias`` -> ``_fc (2)``."""
    counts = Counter(".".join(name.split(".")[:-1][:2]) or name for name in names)
    shown = [f"{part} ({n})" for part, n in list(counts.items())[:12]]
    return ", ".join(shown) + (f" and {len(counts) - 12} more parts" if len(counts) > 12 else "")


def load_by_name(
    module: nn.Module,
    state_dict: Mapping[str, torch.Tensor],
    *,
    rename: Mapping[str, str] | None = None,
    optional: tuple[str, ...] | None = None,
    source: str = "",
) -> LoadReport:
    """Copy tensors of equal name and shape into parameters and buffers. Device and dtype stay.

    Args:
        module: filled in place.
        state_dict: name -> tensor.
        rename: beginnings of the file's names -> the module's, whole dotted parts only, the longest that fits.
        optional: beginnings of the module's names that the file may lack; anything else missing, and any other shape,
            is an error. None: everything may be missing or misshapen, and is reported.
        source: where the tensors came from, for messages.

    A WeightsError, and nothing copied, where nothing fits or a tensor has an Inf or NaN.
    """
    origin = {_rename(name, rename or {}): name for name in state_dict}
    renamed = {ours: state_dict[name] for ours, name in origin.items()}
    own = module.state_dict()
    matching = [name for name in own if name in renamed and renamed[name].shape == own[name].shape]
    others = [name for name in own if name in renamed and renamed[name].shape != own[name].shape]
    report = LoadReport(
        loaded=tuple(matching),
        # Files from before torch 0.4.1 lack batch norm's counter of batches, which nothing here reads.
        missing=tuple(n for n in own if n not in renamed and not n.endswith("num_batches_tracked")),
        unexpected=tuple(origin[name] for name in renamed if name not in own),
        misshapen=tuple((name, tuple(own[name].shape), tuple(renamed[name].shape)) for name in others),
        source=source,
    )
    if optional is not None and (report.misshapen or [n for n in report.missing if not n.startswith(optional)]):
        raise WeightsError(f"the weights do not fit the model: {report}")
    if not matching:
        raise WeightsError(f"not one of the weights fits the model: {report}")
    for name in matching:
        if not torch.isfinite(renamed[name]).all():
            raise WeightsError(f"{source or 'the weights'}: {origin[name]} has values that are not finite")
    with torch.no_grad():
        for name in matching:
            own[name].copy_(renamed[name])
    return report


def _rename(name: str, rename: Mapping[str, str]) -> str:
    """``name`` with the longest of the beginnings in ``rename`` replaced."""
    end = len(name)
    while end != -1:
        if name[:end] in rename:
            return (rename[name[:end]] + name[end:]).removeprefix(".")
        end = name.rfind(".", 0, end)
    return name


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a weights file, on the CPU. Of a checkpoint: its ``state_dict``."""
    return state_dict_of(read_plain(path), path)


def state_dict_of(content: Any, path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of the content that was read from ``path``, as :func:`read_state_dict`."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds no weights: a {type(content).__name__} where named tensors should be")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(f"{path} holds more than weights: {name!r} is a {type(value).__name__}, not a tensor")
    return dict(content)


def read_plain(path: str | Path, *, mapped: bool = False) -> Any:
    """Content of a ``torch.save`` or safetensors file on the CPU. Raises WeightsError for damage or code.

    Args:
        path: the file; of ``.safetensors`` the content is ``{"state_dict", "experiment"}``, the latter where its
            metadata hold a ``config``.
        mapped: tensors are memory-mapped; not for files older than torch 1.6.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    if not os.access(path, os.R_OK):
        raise WeightsError(f"{path} cannot be read: permission denied")
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        # torch's message ends in advice to switch the check off; the first sentence has the cause.
        cause = str(error).partition("\n")[0]
        raise WeightsError(
            f"{path} is not read: it is damaged, or holds more than tensors and plain data, and reading it could run "
            f"code. Save its state_dict alone and take that file ({cause[:200]})"
        ) from error
    except Exception as error:  # torch's reader may raise anything: struct.error, KeyError, EOFError ...
        cause = str(error).partition("\n")[0]
        raise WeightsError(f"{path} cannot be read: it is cut short or damaged ({cause[:200]})") from error


def read_checkpoint(file: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Content of a training checkpoint: tensors, from disk where ``mapped``, and plain data only.

    Raises:
        WeightsError: missing, damaged, or not of this project.
    """
    refusal = f"{file}: is not a checkpoint of this project"
    try:
        content = read_plain(file, mapped=mapped)
    except WeightsError as error:
        raise WeightsError(f"{refusal}, or it is damaged: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{refusal}; it holds a {type(content).__name__}")
    if missing := [key for key in ("experiment", "state_dict") if not isinstance(content.get(key), dict)]:
        raise WeightsError(f"{refusal}; it has no {' and no '.join(map(repr, missing))}")
    if not any(name.startswith(PREFIX) for name in content["state_dict"]):
        raise WeightsError(f"{refusal}; none of its weights is named {PREFIX}...")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            content: dict[str, Any] = {"state_dict": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
        if "config" in metadata:
            content["experiment"] = json.loads(metadata["config"])
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: it is cut short or damaged ({str(error)[:200]})") from error
    return content


def download(url: str, sha256_prefix: str, cache_dir: str | Path | None = None, *, alternatives: str = "") -> Path:
    """Cached file of a URL, fetched if it is missing. Its hash is checked.

    Args:
        url: ends in the file's name.
        sha256_prefix: how the file's SHA-256 begins, in hexadecimal; PyTorch's file names have eight digits.
        cache_dir: None for ``$SSD_EFFNET_CACHE`` or ``~/.cache/ssd_effnet``.
        alternatives: what to do instead, for the message.
    """
    folder = Path(cache_dir or os.environ.get("SSD_EFFNET_CACHE") or "~/.cache/ssd_effnet").expanduser()
    target = folder / url.rpartition("/")[2]
    if target.is_file():
        if has_hash(target, sha256_prefix):
            return target
        raise WeightsError(
            f"{target} is not the file that {url} stands for: its SHA-256 does not begin with {sha256_prefix}; "
            "delete it to have it fetched again"
        )
    _log.info("fetching %s into %s", url, folder)
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(TIMEOUT_SECONDS)  # torch sets none
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), sha256_prefix.lower(), progress=sys.stderr.isatty())
    except RuntimeError as error:
        raise WeightsError(f"what {url} sent is cut short or another file: {error}; nothing was kept") from error
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(
            f"could not fetch {url} ({error}); fetch it elsewhere and put it at {target}"
            + (f", or {alternatives}" if alternatives else "")
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return target


def has_hash(path: Path, sha256_prefix: str) -> bool:
    """Whether a file's SHA-256 begins with these hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(sha256_prefix.lower())


def adapt_first_convolution(weight: torch.Tensor, in_channels: int) -> torch.Tensor:
    """RGB weights for images with other channels. ``(O, 3, k, k)`` to ``(O, in_channels, k, k)``.

    1 (LWIR): the sum over R, G, B. 4 (R, G, B, LWIR): half of R, G, B and half their sum. So the response to a
    normalised grey image is the same.
    """
    if weight.ndim != 4 or weight.shape[1] != 3:
        raise WeightsError(f"a first convolution over R, G, B has weights (O, 3, k, k), not {tuple(weight.shape)}")
    total = weight.sum(dim=1, keepdim=True)  # (O, 1, k, k)
    if in_channels in (1, 3, 4):
        return {1: total, 3: weight, 4: torch.cat([weight, total], dim=1) / 2}[in_channels]
    raise WeightsError(f"there is no rule to turn three input channels into {in_channels}; there is one for 1, 3 and 4")
