"""The schema of an experiment, and how a file becomes one.

An experiment is a YAML file that names its ``base`` and then only what it changes. :func:`load_experiment` follows the
chain of bases, applies ``key=value`` overrides and checks everything against the dataclasses below; whatever is wrong
is a :class:`ConfigError` that names the file, the key and the nearest right name.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_NOT_SETTINGS = ("base", "name", "description", "changes")


TINY = (
    "input.size=[128,160]",
    "backbone.pretrained=none",
    "backbone.norm=batch",
    "adapter.channels=32",
    "extras.channels=32",
    "trainer.batch_size=2",
    "trainer.epochs=1",
    "trainer.validate_every=1",
    "trainer.panel_images=2",
    "data.workers=0",
)
"""What makes any experiment small enough to try on a CPU whether it runs at all; its figures mean nothing."""


class ConfigError(ValueError):
    """A sentence about what is wrong with an experiment: file, key, and what would be right."""


def _choice(default: str, *others: str) -> Any:
    return field(default=default, metadata={"choices": (default, *others)})


def _list(*values: Any) -> Any:
    return field(default_factory=lambda: list(values))


@dataclass
class InputConfig:
    """What enters the detector."""

    size: list[int] = _list(512, 640)  # (height, width)
    modality: str = _choice("visible", "lwir", "early", "halfway")
    normalize: bool = True
    mean: list[float] = _list(0.3465, 0.3219, 0.2842, 0.1598)  # R, G, B, LWIR in 0..1
    std: list[float] = _list(0.2358, 0.2265, 0.2274, 0.0813)


@dataclass
class DataConfig:
    kind: str = _choice("kaist", "coco")
    root: str = "data/kaist"
    annotations: str = _choice("xml", "bbgt", "paired")
    train: str = "train-all-02"
    val: str = "set02/V001/I00121-I00189"  # cut out of train
    test: str = "test-all-20"
    workers: int = 2
    on_bad_frame: str = _choice("stop", "skip")
    min_height: float = 12.0  # lower boxes are ignore regions in training, pixels of the original image


@dataclass
class AugmentConfig:
    jitter: float = 0.3
    flip: float = 0.5
    crop: str = _choice("resized", "ssd", "none")
    crop_scale: list[float] = _list(0.25, 4.0)  # area of the crop over area of the image; above 1 it expands
    crop_ratio: list[float] = _list(0.8, 1.2)
    crop_probability: float = 0.5


@dataclass
class BackboneConfig:
    name: str = "vgg16-bn"
    pretrained: str = "none"  # imagenet, none or a file
    levels: list[int] | None = None  # None: those of the study
    strides: str = _choice("halving", "published")
    norm: str = _choice("batch", "frozen", "group")
    drop_connect: float | None = None  # None: as published


@dataclass
class FusionConfig:
    """Halfway fusion of the two modalities; read only with ``input.modality: halfway``."""

    kernel_size: int = 1  # of the convolutions that join the streams, 1 or 3
    shared: bool = False  # one set of stream weights, or one a modality
    up_to: int | None = None  # place of the last level to which the streams stay apart; None: all of them


@dataclass
class AdapterConfig:
    kind: str = _choice("none", "conv1x1", "conv3x3")
    channels: int = 512
    activation: str = _choice("none", "relu", "silu")
    l2_norm: bool = False  # of the shallowest level, as SSD does with conv4_3
    after_neck: bool = False  # the study's necks work on the backbone's own widths; what leaves them is widened


@dataclass
class NeckConfig:
    """A graph between the levels, see :class:`ssd_effnet.models.necks.GraphNeck`; only read with a ``topology``."""

    topology: str = _choice(
        "none", "study_fpn", "fpn", "panet", "nas_fpn", "fully_connected", "simplified_panet", "bifpn"
    )
    channels: int | None = None  # None: each level keeps its own
    upsample: str = _choice("bilinear", "nearest", "transposed")
    downsample: str = _choice("max_pool", "conv")
    fusion: str = _choice("sum", "unbounded", "softmax", "fast")
    convolution: str = _choice("none", "conv1x1", "conv3x3", "separable")  # after the fusion
    activation: str = _choice("none", "relu", "silu")
    activation_first: bool = False  # before the convolution, as in the code of EfficientDet and NAS-FPN
    repeats: int = 1
    project: str = _choice("edge", "level")  # where a given map takes the width of the neck
    extra_levels: int = 0  # coarser levels, made by pooling, that join the graph: EfficientDet's P6 and P7
    outputs: int | None = None  # how many of the finest levels leave; None: as the topology says
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1  # share of the new batch in the running statistics


@dataclass
class ExtrasConfig:
    """SSD's extra levels on top of the deepest one: 1x1, then 3x3 with these strides; none for no strides."""

    channels: int = 512
    strides: list[int] = _list(2, 1, 1)


@dataclass
class AnchorsConfig:
    sizes: list[float] = _list(40.0, 80.0, 160.0, 200.0, 280.0, 360.0)  # side of the square of equal area, a level
    ratios: list[float] = _list(0.5, 1.0)  # width / height
    scales: list[float] = _list(1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    # the (height, width) in whose pixels the sizes are stated; None: those of the input, whatever its size
    reference_size: list[int] | None = field(default_factory=lambda: [512, 640])
    variances: list[float] = _list(0.1, 0.2)  # of the box code: centres and sizes; EfficientDet has 1, 1


@dataclass
class HeadConfig:
    kind: str = _choice("ssd", "efficientdet")
    classes: list[str] = _list("person")  # background is added, index 0
    layers: int = 3  # efficientdet: separable convolutions of the class and box nets before their last one


@dataclass
class LossConfig:
    kind: str = _choice("multibox", "focal")
    iou_threshold: float = 0.5
    negative_iou: float | None = None  # anchors without object from this IoU on are ignored; None: they are negative
    negative_ratio: float = 3.0  # multibox
    min_negatives: int = 16  # multibox: an image, so that one without people teaches something
    alpha: float = 0.25  # focal
    gamma: float = 1.5  # focal
    prior: float = 0.01  # focal: the score of every anchor before training
    localization: str = _choice("smooth_l1", "l1", "huber")
    localization_delta: float = 1.0  # where smooth_l1 and huber turn from square to straight
    localization_weight: float = 1.0


@dataclass
class PostprocessConfig:
    score_threshold: float = 0.01
    pre_nms_top_k: int = 1000
    nms_iou: float = 0.45
    top_k: int = 200


@dataclass
class OptimizerConfig:
    name: str = _choice("sgd", "rmsprop", "adamw")
    lr: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_lr_factor: float = 2.0
    backbone_lr_factor: float = 1.0
    decay_norms: bool = True  # weight decay on biases and norm factors too, as the study has it
    gradient_clip: float = 0.0  # largest gradient norm; 0: none
    accumulate: int = 1  # batches a step


@dataclass
class ScheduleConfig:
    name: str = _choice("multistep", "cosine", "plateau", "constant")
    milestones: list[float] = _list(0.5, 0.9)  # shares of the epochs
    gamma: float = 0.1
    patience: int = 3  # validations without progress before plateau cuts the rate
    monitor: str = _choice("val/MR/reasonable_all", "val/loss_total")  # what plateau watches
    warmup_steps: int = 0
    final_lr_factor: float = 0.01  # where cosine ends


@dataclass
class TrainerConfig:
    epochs: int = 40
    batch_size: int = 16
    seed: int = 0
    ema_decay: float = 0.0  # 0: no moving average
    accelerator: str = _choice("auto", "cpu", "gpu")
    devices: int = 1
    num_nodes: int = 1
    precision: str = _choice("32-true", "bf16-mixed", "16-mixed")
    threads: int = 0  # 0: torch's own choice
    channels_last: bool = True
    validate_every: int = 1  # epochs
    monitor: str = _choice("val/MR/reasonable_all", "val/AP", "val/AP50", "val/loss_total")  # what chooses `best`
    test_checkpoint: str = _choice("best", "last")
    panel_images: int = 8  # validation pictures in TensorBoard, the same each epoch


@dataclass
class ExperimentConfig:
    """One experiment, whole. ``name`` is the file's stem, ``changes`` the keys in which it differs from its base."""

    name: str = ""
    description: str = ""
    changes: list[str] = field(default_factory=list)
    input: InputConfig = field(default_factory=InputConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    extras: ExtrasConfig = field(default_factory=ExtrasConfig)
    anchors: AnchorsConfig = field(default_factory=AnchorsConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def load_experiment(path: str | Path, overrides: Sequence[str] = (), *, tiny: bool = False) -> ExperimentConfig:
    """Read an experiment file, its bases and ``key=value`` overrides.

    Args:
        path: a YAML file: an experiment, or the ``config.yaml`` of a run.
        overrides: dotted keys, YAML values: ``optimizer.lr=0.001``, ``input.size=[256,320]``.
        tiny: shrink it by :data:`TINY` (which overrides may change again) and append ``-tiny`` to its name.

    Raises:
        ConfigError: one sentence naming file (or override), key and the nearest right key or value.
    """
    path = Path(path)
    config = OmegaConf.structured(ExperimentConfig)
    for layer_path, layer in reversed(_chain(path)):
        config = _merge(config, layer, str(layer_path))
    config.name = (config.name or path.stem) + ("-tiny" if tiny else "")
    for override in (*(TINY if tiny else ()), *overrides):
        config = _merge(config, _parse_override(override), f"override {override!r}")
    experiment = _to_dataclass(config)
    _check(experiment, str(path))
    return experiment


def load_base(path: str | Path) -> ExperimentConfig:
    """What an experiment file starts from: its base, or the defaults where it names none."""
    chain = _chain(Path(path))
    return load_experiment(chain[1][0]) if len(chain) > 1 else ExperimentConfig()


def save_experiment(experiment: ExperimentConfig, path: str | Path) -> None:
    """Write the resolved experiment; :func:`load_experiment` reads it back as it is."""
    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.structured(experiment)), encoding="utf-8")


def differences(a: ExperimentConfig, b: ExperimentConfig) -> list[str]:
    """Sorted dotted keys in which two experiments differ, names and descriptions apart."""
    left, right = settings(a), settings(b)
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def settings(experiment: ExperimentConfig) -> dict[str, Any]:
    """All settings as ``{dotted key: value}``, without name, description and changes."""
    return {
        f"{group.name}.{key}": value
        for group in dataclasses.fields(experiment)
        if group.name not in _NOT_SETTINGS
        for key, value in dataclasses.asdict(getattr(experiment, group.name)).items()
    }


def _chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file and its bases, each with its content less ``base``; the file itself first."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    current = path
    while True:
        if any(current.resolve() == seen.resolve() for seen, _ in chain):
            raise ConfigError(f"{current}: `base` leads in a circle: {' -> '.join(str(p) for p, _ in chain)}")
        content = _read_yaml(current)
        base = content.pop("base", None)
        if chain:  # a base's name, question and list of changes are its own
            content = {key: value for key, value in content.items() if key not in _NOT_SETTINGS}
        chain.append((current, content))
        if base is None:
            return chain
        if not isinstance(base, str):
            raise ConfigError(f"{current}: `base` must be the name of a file, not {base!r}")
        if not (current.parent / base).is_file():
            names = [p.name for p in sorted(current.parent.glob("*.yaml"))]
            raise ConfigError(f"{current}: base {base!r} is not beside it{nearest(base, names)}")
        current = current.parent / base


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        names = [str(p) for p in sorted(path.parent.glob("*.yaml"))] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: there is no such experiment file{nearest(str(path), names)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, not a {type(content).__name__}")
    return content


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {text!r}: must have the form key=value, for example optimizer.lr=0.001")
    try:
        content: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not YAML: {' '.join(str(error).split())}") from error
    for part in reversed(key.strip().split(".")):
        content = {part: content}
    assert isinstance(content, dict)
    return content


def _merge(config: DictConfig, layer: dict[str, Any], source: str) -> DictConfig:
    """Merge key by key, so that a complaint can name the very key."""
    for key, value in _leaves(layer, ExperimentConfig, source, ()):
        if isinstance(value, str):
            value = _as_float_if_that_is_meant(config, key, value)
        try:
            OmegaConf.update(config, key, value, merge=False)
        except (OmegaConfBaseException, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{source}: key `{key}`: {reason}") from error
    return config


def _as_float_if_that_is_meant(config: DictConfig, key: str, value: str) -> Any:
    """YAML 1.1 reads 1e-4 as text (it wants 1.0e-4); people mean the number."""
    if isinstance(OmegaConf.select(config, key), float):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _leaves(layer: dict[str, Any], schema: type, source: str, path: tuple[str, ...]) -> Iterable[tuple[str, Any]]:
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in layer.items():
        dotted = ".".join((*path, str(key)))
        if key not in fields:
            known = [".".join((*path, name)) for name in fields] + list(settings(ExperimentConfig()))
            raise ConfigError(f"{source}: key `{dotted}` is unknown{nearest(dotted, known)}")
        factory = fields[key].default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: key `{dotted}` is a group of settings, not a value ({value!r})")
            yield from _leaves(value, factory, source, (*path, str(key)))
        else:
            yield dotted, value


def nearest(name: str, known: Sequence[str]) -> str:
    """``"; did you mean `...`?"`` with the known name that is most like ``name``, or nothing."""
    # the last part weighs most: `optimiser.lr` and `lr` both mean `optimizer.lr`
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [
        k for k in known if k.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]
    ]
    return f"; did you mean `{close[0]}`?" if close else ""


def _to_dataclass(config: DictConfig) -> ExperimentConfig:
    experiment = OmegaConf.to_object(config)
    assert isinstance(experiment, ExperimentConfig)
    return experiment


def _check(e: ExperimentConfig, source: str) -> None:
    """Choices and combinations that types alone cannot say."""

    def refuse(key: str, why: str) -> None:
        raise ConfigError(f"{source}: key `{key}`: {why}")

    for group in dataclasses.fields(e):
        value = getattr(e, group.name)
        for f in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
            choices = f.metadata.get("choices")
            given = getattr(value, f.name)
            if choices and given not in choices:
                refuse(
                    f"{group.name}.{f.name}",
                    f"{given!r} is not one of {', '.join(choices)}{nearest(str(given), choices)}",
                )
    for key, pair in (("input.size", e.input.size), ("anchors.reference_size", e.anchors.reference_size)):
        if pair is not None and (len(pair) != 2 or min(pair) < 32):
            refuse(key, f"must be [height, width] of at least 32 pixels each, not {pair}")
    for key, four in (("input.mean", e.input.mean), ("input.std", e.input.std)):
        if len(four) != 4:
            refuse(key, f"must be four numbers (R, G, B, LWIR), not {four}")
    if min(e.input.std) <= 0:
        refuse("input.std", f"must be above 0, not {e.input.std}")
    if not e.head.classes:
        refuse("head.classes", "must name at least one class")
    if len(e.augment.crop_scale) != 2 or len(e.augment.crop_ratio) != 2:
        refuse("augment.crop_scale", "and augment.crop_ratio must be [smallest, largest]")
    if min(e.anchors.sizes, default=0) <= 0 or min(e.anchors.ratios, default=0) <= 0:
        refuse("anchors.sizes", "and anchors.ratios must be positive and not empty")
    if len(e.anchors.variances) != 2 or min(e.anchors.variances) <= 0:
        refuse("anchors.variances", f"must be two numbers above 0 (centre, size), not {e.anchors.variances}")
    if e.loss.negative_iou is not None and not 0 <= e.loss.negative_iou <= e.loss.iou_threshold:
        refuse("loss.negative_iou", f"must be from 0 to loss.iou_threshold, not {e.loss.negative_iou}")
    if not 0 < e.loss.prior < 1:
        refuse("loss.prior", f"must be above 0 and below 1, not {e.loss.prior}")
    if e.loss.localization_delta <= 0:
        refuse("loss.localization_delta", f"must be above 0, not {e.loss.localization_delta}")
    if e.neck.topology == "none" and e.adapter.after_neck:
        refuse("adapter.after_neck", "needs a neck; set neck.topology")
    for key in (
        *("trainer.epochs", "trainer.batch_size", "trainer.devices", "trainer.num_nodes", "optimizer.accumulate"),
        *("neck.repeats", "head.layers"),
    ):
        group_name, name = key.split(".")
        if getattr(getattr(e, group_name), name) < 1:
            refuse(key, "must be at least 1")
    if e.optimizer.lr <= 0:
        refuse("optimizer.lr", f"must be above 0, not {e.optimizer.lr}")
    if not 0 <= e.trainer.ema_decay < 1:
        refuse("trainer.ema_decay", f"must be at least 0 and below 1, not {e.trainer.ema_decay}")
    if e.fusion.kernel_size not in (1, 3):
        refuse("fusion.kernel_size", f"must be 1 or 3, not {e.fusion.kernel_size}")
    if e.schedule.name == "plateau" and not e.data.val:
        refuse("schedule.name", f"plateau watches {e.schedule.monitor}, but data.val names no validation split")
    if e.schedule.name == "plateau" and e.schedule.warmup_steps:
        refuse("schedule.warmup_steps", "must be 0 with plateau, which knows nothing of steps")
    if e.trainer.validate_every > e.trainer.epochs and e.data.val:
        refuse(
            "trainer.validate_every", f"must be at most trainer.epochs ({e.trainer.epochs}), or nothing is validated"
        )
    if min(e.trainer.validate_every, e.trainer.epochs) < 1:
        refuse("trainer.validate_every", "must be at least 1")
    if not all(0 <= share <= 1 for share in e.schedule.milestones):
        refuse("schedule.milestones", f"must be shares of the run in 0..1, not {e.schedule.milestones}")
    if not 0 < e.schedule.gamma < 1:
        refuse("schedule.gamma", f"must lie between 0 and 1, not {e.schedule.gamma}")
    if e.backbone.norm == "frozen" and e.backbone.pretrained == "none":
        refuse("backbone.norm", "frozen needs weights that bring statistics to freeze; set backbone.pretrained")
    if e.backbone.name.startswith("vgg") and e.backbone.levels is not None:
        refuse("backbone.levels", f"{e.backbone.name} always hands out conv4_3, conv6 and conv7; leave levels out")
    if e.data.test and e.data.test == e.data.val and e.trainer.test_checkpoint == "best":
        refuse("data.val", "is the test split, which must not choose the epoch; set trainer.test_checkpoint: last")
