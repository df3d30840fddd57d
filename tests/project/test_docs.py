"""The pages: every command in them parses, blocks run as they stand, links lead somewhere, the site builds.

A block behind ``<!-- slow -->`` runs with the slow tests, one behind ``<!-- not run: why -->`` never does; its commands
must parse all the same.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from untrained import loaded, write_checkpoint

from ssd_effnet import registry
from ssd_effnet.build import build_detector
from ssd_effnet.cli.keys import keys_page
from ssd_effnet.cli.main import COMMANDS as COMMAND_NAMES
from ssd_effnet.cli.main import module
from ssd_effnet.config.keys import settings
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.models.backbones.check import check_backbone

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
OTHERS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "experiments" / "README.md"]
_FENCE = re.compile(r"(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.S | re.M)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page; ``mark`` is the comment before it."""

    page: Path
    language: str
    text: str
    mark: str


def blocks(page: Path, language: str) -> list[Block]:
    found = [Block(page, m["language"], m["text"], m["mark"] or "") for m in _FENCE.finditer(page.read_text("utf-8"))]
    assert all(re.fullmatch(r"|slow|not run: .{10,}", block.mark) for block in found), f"{page}: a mark without meaning"
    return [block for block in found if block.language == language]


def commands(text: str) -> Iterator[list[str]]:
    """The words behind ``ssd-effnet`` in each line, patterns not yet expanded; comments and heredocs left out."""
    text = re.sub(r"<<'EOF'\n.*?^EOF$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\s*\\\n\s*", " ", text)
    for line in text.splitlines():
        if line.strip().startswith("ssd-effnet ") and "$(" not in line:
            yield shlex.split(re.sub(r"\s{2,}(#|[^-\s]).*$", "", line.strip()), comments=True)[1:]


def parsed(words: list[str]) -> Any:
    """The arguments as the command would take them; patterns are expanded as the shell does."""
    name = words[0]
    rest = [word for before, word in pairwise(words) if "--plugins" not in (before, word)]  # which a page makes
    found = {word: sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(word)) for word in rest if "*" in word}
    expanded = [match for word in rest for match in (found.get(word) or [word])]
    if hasattr(module(name), "parse"):
        return module(name).parse(expanded)
    parser = module(name).parser()
    try:
        return parser.parse_intermixed_args(expanded)
    except TypeError:  # argparse's answer where there are subcommands
        return parser.parse_args(expanded)


def in_help(name: str) -> str:
    return str(module(name).parser().description).partition("examples:\n")[2].partition("\n\n")[0]


EVERYWHERE = [
    *((str(p.relative_to(ROOT)), block.text) for p in [*PAGES, *OTHERS] for block in blocks(p, "bash")),
    *((f"{name} --help", in_help(name)) for name in COMMAND_NAMES),
]


def printed(name: str) -> Iterator[list[str]]:
    """Commands in what a command prints; what is filled in when it runs may stand for a path or a setting here."""
    for node in ast.walk(ast.parse((ROOT / "ssd_effnet" / "cli" / f"{name}.py").read_text("utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("print"):
            for text in (argument for argument in node.args if isinstance(argument, ast.JoinedStr | ast.Constant)):
                parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                said = "".join(str(p.value) if isinstance(p, ast.Constant) else "data.root=x" for p in parts)
                yield from (shlex.split(line) for line in re.findall(r"ssd-effnet (\w+ .*)", said))


COMMANDS = [(origin, words) for origin, text in EVERYWHERE for words in commands(text)]


PRINTED = [(f"{name} prints", words) for name in COMMAND_NAMES for words in printed(name)]


def test_there_are_commands_to_look_at() -> None:
    assert {origin.split()[0] for origin, _ in PRINTED} == {"demo", "synthesize", "search", "study", "train"}
    origins = {origin for origin, _ in COMMANDS}
    assert len(COMMANDS) > 90 and {"README.md", "docs/kaist.md", "train --help"} <= origins


@pytest.mark.parametrize(
    ("origin", "words"), [*COMMANDS, *PRINTED], ids=lambda x: x if isinstance(x, str) else " ".join(x[:2])
)
def test_every_command_anywhere_parses(origin: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Options exist, experiments are there, and their settings are keys of the schema."""
    if "--help" in words or words == ["--version"]:
        return
    try:
        arguments = parsed(words)
    except SystemExit:
        pytest.fail(f"{origin}: {shlex.join(words)}: {capsys.readouterr().err}")
    files = [*(getattr(arguments, "experiments", None) or []), getattr(arguments, "experiment", None)]
    overrides = [o for o in getattr(arguments, "overrides", []) if not re.match(r"[^=]*:", o)]
    for name in map(str, filter(None, files)):
        file = Path(name) if "/" in name or "." in name else Path("experiments", f"{name}.yaml")
        if file.parent.name == "experiments" and file.stem not in ("mine", "resnet18"):  # which a page makes
            loaded(ROOT / file, tuple(overrides))


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    """A folder that looks like a checkout, with the project's command and the environment's programs in the path."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "ssd-effnet"
    start = 'import sys\nfrom ssd_effnet.cli.main import main\nif __name__ == "__main__":\n    sys.exit(main())\n'
    command.write_text(f"#!{sys.executable}\n{start}")  # as pip writes it: a study's processes import it
    command.chmod(0o755)
    for name in ("scripts", "docs", "ssd_effnet"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    return tmp_path


def follow_the_backbones_page(page: Path, sandbox: Path) -> None:
    """Save its class and its experiment where it says."""
    _, file, *_ = blocks(page, "python")
    (experiment,) = blocks(page, "yaml")
    (sandbox / "resnet.py").write_text(file.text)
    (sandbox / "experiments" / "resnet18.yaml").write_text(experiment.text)


def run(block: Block, sandbox: Path) -> str:
    path = os.pathsep.join((str(sandbox / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=sandbox,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": f"{sandbox}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{block.page.name}:\n{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def smaller(block: Block) -> Block:
    """With fewer frames and an experiment that trains for seconds; the page's own takes minutes, to find somebody."""
    text = block.text
    fewer = {"epochs: 12": "epochs: 8", "size: [256, 320]": "size: [128, 160]"}
    for words, few in fewer.items() if "experiments/mine.yaml <<" in text else ():
        assert text.count(words) == 1, words
        text = text.replace(words, few)
    return replace(block, text=text.replace("--frames 320", "--frames 80"))


def pages_with(*marks: str) -> list[Any]:
    """Pages with a block of shell commands of one of these marks."""
    found = [page for page in PAGES if any(block.mark in marks for block in blocks(page, "bash"))]
    return [pytest.param(page, id=page.stem) for page in found]


@pytest.mark.parametrize("page", pages_with(""))
def test_quick_blocks_run_as_they_stand(page: Path, sandbox: Path) -> None:
    for block in blocks(page, "bash"):
        if not block.mark:
            run(smaller(block), sandbox)
    if page.stem == "your-data":
        e = load_experiment(sandbox / "experiments" / "mine.yaml")
        assert e.data.kind == "coco" and (sandbox / e.data.root / e.data.train).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("slow"))
def test_whole_pages_run_as_they_stand(page: Path, sandbox: Path) -> None:
    if page.stem == "kaist":  # nobody may put KAIST here: its twin stands in
        words = "ssd-effnet synthesize data/kaist --frames 160 --seed 0"
        run(Block(page, "bash", words, ""), sandbox)
    if page.stem == "your-backbone":
        follow_the_backbones_page(page, sandbox)
    for block in blocks(page, "bash"):
        if not block.mark.startswith("not run"):
            run(smaller(block), sandbox)
    if page.stem == "your-backbone":
        assert (sandbox / "runs/resnet18-tiny/seed0/results.json").is_file()
    if page.stem == "your-data":
        for file in ("mine/seed0/errors/index.html", "mine/seed0/results.json", "mine_study/report/index.html"):
            assert (sandbox / "runs" / file).is_file(), file
        assert (sandbox / "runs/mine/seed0/checkpoints/best.onnx").is_file()
        assert list((sandbox / "found_mine").rglob("*.jpg")) and (sandbox / "found_mine" / "detections.json").is_file()


def test_the_library_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "runs" / "demo" / "seed0" / "checkpoints" / "best.ckpt")
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "docs" / "library.md", "python"):
        exec(compile(block.text, str(block.page), "exec"), {"__name__": "page"})
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("(480, 640)") and said[-1] == "0.5"


def test_the_backbone_of_the_page_keeps_its_promises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sandbox: Path
) -> None:
    page = ROOT / "docs" / "your-backbone.md"
    torch.manual_seed(0)
    least, file, check = blocks(page, "python")
    monkeypatch.setattr(registry.BACKBONES, "_own", dict(registry.BACKBONES))
    monkeypatch.setattr(sys, "path", list(sys.path))
    follow_the_backbones_page(page, sandbox)
    registry.load_plugins(["resnet"], sandbox)
    (sandbox / "two_maps.py").write_text(least.text)
    registry.load_plugins(["two_maps"], sandbox)
    check_backbone(registry.BACKBONES["two_maps"])
    exec(compile(check.text, str(page), "exec"), {})
    code = [x for x in file.text.splitlines() if x.strip() and not x.startswith(("import", "from", '"""'))]
    assert len(code) <= 30
    # the trunk of the published network: its 11,689,512 parameters less the classifier's 512 x 1000 + 1000
    assert capsys.readouterr().out == f"{11_689_512 - 513_000} parameters\n"
    e = load_experiment(sandbox / "experiments" / "resnet18.yaml", tiny=True)
    detector, _ = build_detector(e)
    outputs = detector.train()(torch.zeros((1, 3, 128, 160), dtype=torch.uint8))
    outputs.cls_logits.sum().backward()
    assert outputs.cls_logits.shape[1] == len(outputs.anchors_cxcywh) and e.plugins == ["resnet"]
    for plugin in ("resnet", "two_maps"):
        del sys.modules[plugin], registry.plugins[plugin]


def test_the_page_of_keys_is_that_of_the_schema() -> None:
    written = keys_page()
    assert written == (ROOT / "docs" / "keys.md").read_text("utf-8"), "run `ssd-effnet keys`"
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", written, re.MULTILINE))
    assert rows.keys() >= settings(ExperimentConfig()).keys()
    assert rows["class_loss.gamma"].startswith("`1.5` | `focal`: ")  # of what is not the default, too
    assert not [key for key, row in rows.items() if row.endswith("|  ")], "say in the schema what they mean"
    assert rows["fusion.up_to"].startswith("`null`, integer | index of the last level")
    assert rows["trainer.monitor"].startswith("`val/MR/reasonable_all`, `val/MR/reasonable_day`, ")
    assert rows["anchors.reference_size"].startswith("`[512, 640]`, `null` | (height, width)")


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, target


def test_the_first_pages_tree_is_there() -> None:
    (tree,) = blocks(ROOT / "README.md", "text")
    folder = ""
    for line in tree.text.splitlines():
        head, words = line[:24].split(), line[24:]
        folder = head[0].split("/")[0] if not line.startswith(" ") else folder
        inside = [ROOT / folder / name if line.startswith(" ") else ROOT / name for name in head]
        assert inside and all(path.is_dir() for path in inside), line
        for name in re.findall(r"\w+\.py", words):
            beside = "beside it" in words and (inside[0].parent / name).is_file()
            assert beside or (inside[0] / name).is_file(), name


@pytest.mark.slow  # `make docs` is part of the gate
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="pip install '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    library = (tmp_path / "site" / "library" / "index.html").read_text("utf-8")
    assert "load_detector" in library and ":meth:" not in library and ":class:" not in library
    assert (tmp_path / "site" / "repository" / "experiments" / "people.yaml").is_file()


def test_the_citation_says_what_the_package_says() -> None:
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= said.keys()
    assert (said["version"], said["license"]) == (package["version"], package["license"])
