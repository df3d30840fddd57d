"""Experiments as files: inheritance, overrides, and complaints that help."""

import re
from pathlib import Path

import pytest
from untrained import loaded

from ssd_effnet.config.keys import key_types, options, settings
from ssd_effnet.config.loading import ConfigError, differences, layers_of, load_experiment, save_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.models.backbones import BACKBONES
from ssd_effnet.study.plan import plan

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


def load_base(path: Path) -> ExperimentConfig:
    """An experiment's base; the defaults without one."""
    chain = layers_of(path)
    return loaded(chain[1][0]) if len(chain) > 1 else ExperimentConfig()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("description: first\noptimizer: {lr: 1e-3}\ninput: {size: [256, 320]}\n")
    (tmp_path / "child.yaml").write_text("base: base.yaml\nchanges: [trainer.epochs]\ntrainer:\n  epochs: 3\n")
    return tmp_path


def test_a_child_is_its_base_and_what_it_changes(files: Path) -> None:
    child = load_experiment(files / "child.yaml", ["trainer.seed=7"])
    assert (child.name, child.description) == ("child", "")
    assert (child.optimizer.lr, child.input.size) == (1e-3, [256, 320])
    assert (child.trainer.epochs, child.trainer.seed) == (3, 7)


def test_ancestors_are_names_of_experiments(files: Path) -> None:
    (files / "named.yaml").write_text("base: child.yaml\nname: of its own\n")
    (files / "grandchild.yaml").write_text("base: named.yaml\n")
    e = load_experiment(files / "grandchild.yaml")
    assert e.ancestors == ["of its own", *load_experiment(files / "named.yaml").ancestors]
    assert load_experiment(files / "child.yaml").ancestors == ["base"]
    save_experiment(e, files / "config.yaml")
    assert load_experiment(files / "config.yaml").ancestors == e.ancestors
    (files / "on_a_run.yaml").write_text("base: config.yaml\n")
    assert load_experiment(files / "on_a_run.yaml").ancestors == ["grandchild", *e.ancestors]
    assert load_experiment(files / "grandchild.yaml", ["name=other"]).ancestors == ["grandchild", *e.ancestors]


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("trainer.seed", "010", 10),
        ("input.size", "[0512, 640]", [512, 640]),
        ("optimizer.lr", "010", 10.0),
        ("optimizer.lr", "1e-4", 1e-4),
        ("anchors.scales", "[5e-1, 1]", [0.5, 1.0]),
        ("data.lwir_range", "[2e1, 4e2]", [20.0, 400.0]),
        ("trainer.compile", "yes", True),
        ("neck.channels", "~", None),
        *(("data.root", text, text) for text in ("2024_01", "1:30", "1.10", "no", "~", "null", "0x1F", "2024-01-01")),
        ("data.root", "'010'", "010"),
        ("data.classes", "{person: [person, no, 010]}", {"person": ["person", "no", "010"]}),
    ],
)
def test_the_schema_types_a_value_and_not_yaml(files: Path, key: str, written: str, value: object) -> None:
    """YAML 1.1 read 010 as 8, 1:30 as 90, 1.10 as 1.1, 2024_01 as 202401 and no as False."""
    group, _, name = key.partition(".")
    (files / "typed.yaml").write_text(f"{group}: {{{name}: {written}}}\n")
    of_line = load_experiment(files / "child.yaml", [f"{key}={written}"])
    for read in (of_line, load_experiment(files / "typed.yaml")):
        found = settings(read)[key]
        assert (found, type(found)) == (value, type(value))
    save_experiment(of_line, files / "saved.yaml")
    assert load_experiment(files / "saved.yaml") == of_line


@pytest.mark.parametrize("text", ["1.10", "a: b", "x # y", "[1", "'80s", "@home", "*", "true"])
def test_text_of_the_command_line_is_taken_as_written(files: Path, text: str) -> None:
    read = load_experiment(files / "child.yaml", [f"description={text}", f"data.root={text}"])
    assert (read.description, read.data.root) == (text, text)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimiser.lr=1", "did you mean `optimizer`"),
        ("optimizer.lrr=1", "did you mean `optimizer.lr`"),
        (f"optimizer.lr={10**400}", "key `optimizer.lr`: must be finite"),
        ("optimizer.lr=nan", "key `optimizer.lr`: must be finite"),
        ("data.root=${nowhere}", "nowhere"),
        ("data.root=???", "key `data.root`"),
        ("trainer.epochs=1:30", "expected integer, not '1:30'"),
        ("input={size: [1:30, 64]}", "expected list of integers, for example [512,640], not [1:30, 64]"),
        ("trainer=3", "group of settings"),
        ("input.modality=vsible", "did you mean `visible`"),
        ("input.size=[512]", "height, width"),
        ("input.std=[1, 1, 1, 0]", "above 0"),
        ("trainer.ema_decay=1.0", "below 1"),
        ("data.val=test-all-20", "must not choose the epoch"),
        ("input={size: [64, 64], size: [96, 96]}", "the value: key `size` is a duplicate"),
        ("data.train=", "key `data.train`: must not be empty"),
        ("optimizer.lr", "example optimizer.lr=VALUE, without a space"),
        ("epochs", "form key=value, for example optimizer.lr=0.001"),
        ("input.size=128,160", "expected list of integers, for example [512,640], not '128,160'"),
        ("optimizer.lr=abc", "expected number, not 'abc'"),
        ("trainer.compile=perhaps", "'perhaps' is not one of true, false"),
        ("backbone.levels=3", "expected list of integers, or `null`, not 3"),
        ("data.lwir_range=[9000,7000]", "`data.lwir_range`: must be [low, high], low below high"),
        ("data.lwir_range=[7000]", "`data.lwir_range`: must be [low, high]"),
        ("data.lwir_quantiles=[0.1,1.5]", "`data.lwir_quantiles`: must lie in 0..1"),
        ("data.orientation=up", "data.orientation"),
    ],
)
def test_wrong_overrides_are_named(files: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(files / "child.yaml", [override])
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "wrong", "right", "says"),
    [
        ("anchors.sizes", "[40,0]", "[40,80]", "above 0 each, not [40.0, 0.0]"),
        ("extras.strides", "[2,0]", "[]", "at least 1 each, not [2, 0]"),
        ("input.size", "[16,640]", "[32,640]", "at least 32 each, not [16, 640]"),
        ("input.size", "[512,20000]", "[512,16384]", "at most 16384 each"),
        ("box_loss.delta", "0", "2", "above 0"),
        ("class_loss.alpha", "-0.1", "0", "lie in 0..1"),
        ("class_loss.prior", "1", "0.5", "below 1"),
        ("matcher.iou_threshold", "0", "1", "above 0"),
        ("neck.norm_eps", "0", "1e-12", "above 0"),
        ("schedule.milestones", "[0.5,1.5]", "[0,1]", "lie in 0..1"),
    ],
)
def test_numbers_have_limits(files: Path, key: str, wrong: str, right: str, says: str) -> None:
    focal = ["class_loss.name=focal"]
    load_experiment(files / "child.yaml", [f"{key}={right}", *focal])  # whatever the order
    with pytest.raises(ConfigError) as caught:
        load_experiment(files / "child.yaml", [*focal, f"{key}={wrong}"])
    assert f"key `{key}`: must " in str(caught.value) and says in str(caught.value)


def test_every_whole_number_has_a_least_value(files: Path) -> None:
    for key, kind in key_types().items():
        if int in options(kind):
            with pytest.raises(ConfigError, match=rf"key `{key}`: must be "):
                load_experiment(files / "child.yaml", [f"{key}=-7"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("base: bse.yaml", "did you mean `base.yaml`"),
        ("base: wrong.yaml", "circle"),
        ("base: [3]", "name of a file"),
        ("input: {sizes: [1, 2]}", "did you mean `input.size`"),
        ("- a\n- b", "key: value"),
        ("a: [", "not YAML"),
        ("augment: {resized_crop: {scale: [4, 0.25]}}", "[smallest, largest]"),
        ("augment: {names: [mosaic], mosaic: {centre: [0.8, 0.2]}}", "centre must be [smallest, largest]"),
        ("data: {workers: -1}", "must be at least 0"),
        ("optimizer: {lr: 1}\ninput: {}\noptimizer: {lr: 2}", "key `optimizer` is a duplicate (line 3)"),
        ("optimizer:\n  lr: 1\n  lr: 1", "key `lr` is a duplicate (line 3)"),
        ("extras: {? strides : [1], 'strides': [2]}", "key `strides` is a duplicate"),
    ],
)
def test_wrong_files_are_named(files: Path, content: str, says: str) -> None:
    (files / "wrong.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_experiment(files / "wrong.yaml")
    assert says in str(caught.value) and str(files / "wrong.yaml") in str(caught.value)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_an_experiment_changes_what_it_says_and_says_what_else(path: Path) -> None:
    """``Changes together: KEY, GROUP: why`` in the description; 00 is what the chain begins with."""
    experiment = loaded(path)
    assert differences(experiment, load_base(path)) == sorted(experiment.changes)
    assert experiment.description.strip().endswith((".", "?")) and "?" in experiment.description
    said = re.search(r"Changes together: ([\w., ]+): \S", experiment.description)
    if said:
        named = said[1].split(", ")
        assert [key for key in experiment.changes if not {key, key.split(".")[0]} & set(named)] == []
        assert set(named) <= {part for key in experiment.changes for part in (key, key.split(".")[0])}
    else:
        assert len(experiment.changes) == 1 or not experiment.ancestors
    if path.name[:2].isdigit() and said:  # a step of the chain names each key
        assert sorted(named) == sorted(experiment.changes)


def test_the_chain_is_in_the_order_of_its_questions() -> None:
    steps = [path for path in EXPERIMENTS if path.name[0].isdigit() and "name: timm/" not in path.read_text()]
    files = {path.name.split("_")[0]: path for path in steps}
    chain = {step: loaded(path) for step, path in files.items()}
    parents = {step: e.ancestors[0].split("_")[0] for step, e in chain.items() if step != "00"}
    wanted = (
        "00b:00 01:00b 01a:01 01b:01 02:01 02a:02 03:02 04:02 05:04 06c:05 06:06c 06a:06 06b:06 07:06 07a:07 07b:07a "
        "08:07b 09:08 10:08 11:08 12:08 13:02 13a:02 13b:02 13c:02 14:02 14a:14 15:02 15a:02 16:02 16a:16 17:pennfudan "
        "18:02 19:02 20:lite0 20a:20 20b:20a 20c:20b 20d:20b"
    )
    assert parents == dict(step.split(":") for step in wanted.split())
    assert {e.backbone.pretrained for e in chain.values()} == {"imagenet"}


def test_null_is_the_normalisation_of_the_weights(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LWIR has their average; what is written down are numbers."""
    own = load_experiment(ROOT / "experiments" / "00_vgg16.yaml", ["input.mean=null", "input.std=null"]).input
    assert (own.mean, own.std) == ([0.485, 0.456, 0.406, 0.449], [0.229, 0.224, 0.225, 0.226])
    lite = load_experiment(ROOT / "experiments" / "lite0.yaml")
    assert (lite.input.mean, lite.input.std) == ([0.498] * 4, [0.502] * 4)
    save_experiment(lite, files / "config.yaml")
    assert "mean:\n  - 0.498\n" in (files / "config.yaml").read_text()
    half = load_experiment(ROOT / "experiments" / "00_vgg16.yaml", ["input.std=null"]).input
    assert half.mean == ExperimentConfig().input.mean and half.std == own.std
    monkeypatch.setitem(BACKBONES, "resnet18", BACKBONES["vgg16"])  # somebody's own, without published weights
    with pytest.raises(ConfigError, match=r"lite0\.yaml: key `input\.mean`: null .* resnet18"):
        load_experiment(ROOT / "experiments" / "lite0.yaml", ["backbone.name=resnet18"])


def test_a_saved_config_with_another_backbone_has_that_ones_normalisation(files: Path) -> None:
    save_experiment(load_experiment("lite0"), files / "config.yaml")
    own, std = [0.485, 0.456, 0.406, 0.449], [0.229, 0.224, 0.225, 0.226]
    (files / "on_it.yaml").write_text("base: config.yaml\nbackbone: {name: efficientnet-b0}\n")
    b0 = "backbone.name=efficientnet-b0"
    for path, others, mean in (
        ("config.yaml", [b0], own), ("config.yaml", [b0, "input.mean=[1,2,3,4]"], [1, 2, 3, 4]), ("on_it.yaml", [], own)
    ):  # fmt: skip
        read = load_experiment(files / path, others).input
        assert (read.mean, read.std) == (mean, std)
    (files / "hand.yaml").write_text("base: lite0\nancestors: [other]\n")  # no run's config
    assert load_experiment(files / "hand.yaml").ancestors[-1] == "other"


def test_a_range_of_quantiles_is_forgotten_with_them(files: Path) -> None:
    measured = load_experiment("lite0", ["data.lwir_quantiles=[0.1,0.9]", "data.lwir_range=[100,200]"])
    save_experiment(measured, files / "config.yaml")
    assert load_experiment(files / "config.yaml") == measured
    (files / "on_it.yaml").write_text("base: config.yaml\ndata: {train: others}\n")
    assert load_experiment(files / "on_it.yaml").data.lwir_range is None
    assert load_experiment(files / "config.yaml", ["data.lwir_quantiles=[0,1]"]).data.lwir_range is None
    both = ["data.lwir_range=[1,2]", "data.train=others"]
    assert load_experiment(files / "config.yaml", both).data.lwir_range == [1, 2]
    (files / "by_hand.yaml").write_text("base: lite0.yaml\ndata: {lwir_range: [100, 200]}\n")
    assert load_experiment(files / "by_hand.yaml", ["data.lwir_quantiles=[0,1]"]).data.lwir_range is None
    for key in ("data.lwir_quantiles=null", "data.train=others"):
        assert load_experiment(files / "by_hand.yaml", [key]).data.lwir_range == [100, 200]


def test_defaults_are_valid(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert differences(load_experiment(tmp_path / "empty.yaml"), ExperimentConfig()) == []


def test_a_key_of_the_command_line_in_a_file_is_answered_with_its_group(tmp_path: Path) -> None:
    (tmp_path / "dotted.yaml").write_text("optimizer.lr: 0.01\n")
    with pytest.raises(ConfigError, match=r"in a file write it in its group, `optimizer: \{lr: 0\.01\}`"):
        load_experiment(tmp_path / "dotted.yaml")


@pytest.mark.parametrize("folder", [ROOT, None], ids=["checkout", "elsewhere"])
def test_a_bare_name_is_one_of_the_projects_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path | None
) -> None:
    monkeypatch.chdir(folder or tmp_path)
    lite0 = load_experiment(ROOT / "experiments" / "lite0.yaml")
    assert load_experiment("lite0") == load_experiment("lite0.yaml") == lite0
    assert plan([Path("lite0")], [0], [], tmp_path)[0].source.is_file()
    assert load_experiment("05_deconv").ancestors[0] == "04_fpn"
    with pytest.raises(ConfigError, match=r"^lit0: there is no such .*; did you mean `lite0\.yaml`"):
        load_experiment("lit0")
    with pytest.raises(ConfigError, match=r"^nowhere/lite0: there is no such experiment file"):
        load_experiment("nowhere/lite0")


def test_bases_are_beside_the_file_or_among_the_projects_experiments(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: lite0.yaml\ndescription: Faster?\nchanges: [optimizer.lr]\noptimizer: {lr: 0.5}\n")
    assert differences(load_experiment(mine), load_experiment("lite0")) == ["optimizer.lr"]
    assert load_base(mine).name == "lite0" and load_experiment(mine).ancestors[0] == "lite0"
    (tmp_path / "lite0.yaml").write_text("trainer: {epochs: 7}\n")
    assert load_experiment(mine).trainer.epochs == 7
    (tmp_path / "lite0.yaml").write_text("base: lite0\noptimizer: {lr: 0.5}\n")
    assert differences(load_experiment(mine), load_experiment("lite0")) == ["optimizer.lr"]
    assert load_experiment(tmp_path / "lite0.yaml").backbone.name == "efficientnet-lite0"
    mine.write_text("base: min.yaml\n")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(mine))}: key `base`: min\.yaml: there is no") as caught:
        load_experiment(mine)
    assert "mine.yaml`" not in str(caught.value)


def test_classes_are_a_map_of_labels(files: Path) -> None:
    given = load_experiment(files / "child.yaml", ["data.classes={cyclist: [cyclist], person: [person, people]}"])
    assert list(given.data.classes) == ["cyclist", "person"] and given.data.classes["person"] == ["person", "people"]
    save_experiment(given, files / "saved.yaml")
    assert list(load_experiment(files / "saved.yaml").data.classes) == ["cyclist", "person"]
    other_order = "{person: [person, people], cyclist: [cyclist]}"
    (files / "same.yaml").write_text(f"base: saved.yaml\ndata: {{classes: {other_order}}}\n")
    assert differences(load_experiment(files / "same.yaml"), given) == ["data.classes"]  # class indices are others


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("={}", "must not be empty"),
        ("={person: []}", "needs names"),
        ("={a/b: [person]}", "needs names"),
        ("={a: [person], b: [Person ]}", "belongs to both a and b"),
        ("={a: [person], b: [pedestrian]}", "belongs to both a and b"),  # one label, as annotations are read
        ("={person: [people], ped: [person]}", "person lacks the label person, which ped has"),
        ("=person", r"expected map of names.*, for example \{person: \[person\]\}"),
        (".cyclist=[cyclist]", "the whole map"),
    ],
)
def test_classes_that_cannot_be_are_refused(files: Path, value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"data.classes.*{says}|{says}.*data.classes"):
        load_experiment(files / "child.yaml", [f"data.classes{value}"])
