"""Loading by name, reading files one cannot trust, fetching, and the published weights of the backbones."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from ssd_effnet.models.backbones.pretrained import pretrained_weights
from ssd_effnet.models.weights import WeightsError, adapt_first_convolution, download, load_by_name, read_state_dict


def small() -> nn.Sequential:
    layers = OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), fc=nn.Linear(4, 2))
    return nn.Sequential(layers)


def test_report_names_all_that_did_not_match(tmp_path: Path) -> None:
    file = {k: v.clone() + 1 for k, v in small().state_dict().items()}
    del file["norm.bias"], file["norm.num_batches_tracked"]
    file["head.weight"] = torch.zeros(1)
    file["fc.weight"] = torch.zeros(3, 4)
    torch.save(file, tmp_path / "w.pth")

    module = small()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    report = load_by_name(module, read_state_dict(tmp_path / "w.pth"), source="w.pth")
    assert {*before} - {*report.loaded} == {"norm.bias", "norm.num_batches_tracked", "fc.weight"}
    assert report.missing == ("norm.bias",)
    assert report.unexpected == ("head.weight",)
    assert report.misshapen == (("fc.weight", (2, 4), (3, 4)),)
    for words in ("6 tensors", "w.pth; 1 not", "norm (1); 1 of", "fc.weight is (2, 4)", "(3, 4); 1 of", "head (1)"):
        assert words in str(report)
    after = module.state_dict()
    for key in report.loaded:
        assert torch.equal(after[key], file[key])
    for key in ("norm.bias", "fc.weight"):
        assert torch.equal(after[key], before[key])


def test_what_is_not_optional_must_be_there_and_nothing_is_half_loaded() -> None:
    module = small()
    file = {k: v + 1 for k, v in small().state_dict().items() if not k.startswith("fc")}
    before = module.conv.weight.clone()  # type: ignore[operator, union-attr]
    with pytest.raises(WeightsError, match=r"do not fit the model: .* fc \(2\)"):
        load_by_name(module, file, optional=("norm.",))
    assert torch.equal(module.conv.weight, before)  # type: ignore[arg-type]
    assert load_by_name(module, file, optional=("fc.",)).missing == ("fc.weight", "fc.bias")


def test_refuses_what_fits_nowhere_and_what_is_not_finite() -> None:
    with pytest.raises(WeightsError, match="not one of the weights fits"):
        load_by_name(small(), {"a.weight": torch.zeros(1)})
    bad = small().state_dict()
    bad["norm.weight"][1] = float("nan")
    with pytest.raises(WeightsError, match=r"w\.pth: norm\.weight has values that are not finite"):
        load_by_name(small(), bad, source="w.pth")


def test_renames_whole_parts_only_and_the_longest() -> None:
    module = nn.Module()
    module.a = nn.Linear(1, 1, bias=False)
    module.b = nn.Linear(1, 1, bias=False)
    module.f = nn.ModuleDict({"11": nn.Linear(1, 1, bias=False)})
    file = {f"{name}.weight": torch.tensor([[value]]) for name, value in (("f.1", 1.0), ("f", 2.0), ("f.11", 3.0))}
    report = load_by_name(module, file, rename={"f.1": "a", "f.weight": "b.weight"})
    assert not report.missing + report.misshapen and not report.unexpected
    assert [module.a.weight.item(), module.b.weight.item(), module.f["11"].weight.item()] == [1, 2, 3]

    prefixed = {f"model.backbone.{k}": v for k, v in small().state_dict().items()}
    report = load_by_name(small(), prefixed, rename={"model.backbone": ""})
    assert not report.missing + report.misshapen


def test_whole_models_are_refused(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="Save its state_dict alone"):
        read_state_dict(tmp_path / "model.pth")


@pytest.mark.parametrize("keep", [0, 1, 2, 10, 500, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_cut_files_are_refused_in_one_sentence(tmp_path: Path, keep: float, zipped: bool) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(small().state_dict(), whole, _use_new_zipfile_serialization=zipped)
    data = whole.read_bytes()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(WeightsError, match=r"cut\.pth .*(cut short|damaged)") as caught:
        read_state_dict(cut)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("given", ["null", "", "absent.pth"])
def test_pretrained_that_is_no_file_is_refused_with_its_key(given: str) -> None:
    with pytest.raises(WeightsError, match=f"`backbone.pretrained`: '{given}'"):
        pretrained_weights("vgg16", given)


def test_what_is_no_weights_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"there is no weights file .*absent\.pth"):
        read_state_dict(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="there is no weights file"):
        read_state_dict(tmp_path)
    (tmp_path / "page.pth").write_text("<html>sign in</html>")
    with pytest.raises(WeightsError, match=r"page\.pth is not read: it is damaged"):
        read_state_dict(tmp_path / "page.pth")
    for content, says in (([1], "a list"), ({}, "no weights"), ({"epoch": 3}, "'epoch' is a int")):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match=says):
            read_state_dict(tmp_path / "other.pth")
    (tmp_path / "locked.pth").write_bytes(b"")
    monkeypatch.setattr("os.access", lambda *_: False)  # root may read everything
    with pytest.raises(WeightsError, match=r"locked\.pth cannot be read: permission denied"):
        read_state_dict(tmp_path / "locked.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_plain_files_and_checkpoints(tmp_path: Path, zipped: bool) -> None:
    state = small().state_dict()
    for content in (state, {"state_dict": state, "epoch": 3}):
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        read = read_state_dict(str(tmp_path / "w.pth"))
        assert list(read) == list(state) and torch.equal(read["fc.bias"], state["fc.bias"])


CONTENT = b"weights" * 1000
PREFIX = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture
def site(tmp_path: Path) -> str:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "w.pth").write_bytes(CONTENT)
    (tmp_path / "site" / "cut.pth").write_bytes(CONTENT[:100])
    return (tmp_path / "site").as_uri()


def test_fetches_once_then_takes_the_cache(site: str, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache"
    path = download(f"{site}/w.pth", PREFIX, cache)
    assert path == cache / "w.pth" and path.read_bytes() == CONTENT
    (tmp_path / "site" / "w.pth").unlink()
    assert download(f"{site}/w.pth", PREFIX.upper(), cache) == path
    assert list(cache.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "prefix", "says"),
    [
        ("w.pth", "00000000", "cut short or another file"),
        ("cut.pth", PREFIX, "cut short or another file"),
        ("missing.pth", PREFIX, "could not fetch"),
    ],
)
def test_a_bad_answer_leaves_nothing_behind(site: str, tmp_path: Path, name: str, prefix: str, says: str) -> None:
    with pytest.raises(WeightsError, match=says) as caught:
        download(f"{site}/{name}", prefix, tmp_path / "cache")
    assert f"{site}/{name}" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_first_convolution_for_other_channels() -> None:
    weight = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)
    assert adapt_first_convolution(weight, 1).flatten().tolist() == [9]
    assert adapt_first_convolution(weight, 3) is weight
    assert adapt_first_convolution(weight, 4).flatten().tolist() == [0.5, 1, 3, 4.5]
    with pytest.raises(WeightsError, match="into 2"):
        adapt_first_convolution(weight, 2)
    with pytest.raises(WeightsError, match=r"not \(1, 1, 1, 1\)"):
        adapt_first_convolution(weight[:, :1], 4)
