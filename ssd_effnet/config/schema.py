"""All config keys with types and defaults.

Loading: :mod:`ssd_effnet.config.loading`. A key of :func:`.groups.choice` names an entry of a registry, whose own
arguments are further keys of the group.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from ssd_effnet import registry
from ssd_effnet.config.groups import choice, group

# OmegaConf reads the annotations of these classes: they are evaluated, not postponed


def _key(default: Any, rule: str = "", *, names: str = "") -> Any:
    """A key with limits.

    Args:
        default: of the key; a list or map is copied.
        rule: limits of a number, or of each in a list, as :func:`ssd_effnet.config.checks.check_experiment` reads them.
        names: of a list's values, which fix its length.
    """
    metadata = {"rule": rule, "names": names}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _group(base: type) -> Any:
    return field(default_factory=lambda: group(base))


@dataclass
class InputConfig:
    """Size, modality and normalisation of the images."""

    size: list[int] = _key([512, 640], "at least 32, at most 16384", names="height, width")  # (height, width)
    # letterbox: shape kept, padded right and below with the mean, or 0 without normalize
    fit: Literal["stretch", "letterbox"] = "stretch"
    # early: both as four channels; halfway: two streams, see fusion
    modality: Literal["visible", "lwir", "early", "halfway"] = "visible"
    normalize: bool = True  # by mean and std; false: pixels stay in 0..1
    # R, G, B, LWIR in 0..1, KAIST's; null: that of the weights
    mean: list[float] | None = _key([0.3465, 0.3219, 0.2842, 0.1598], names="R, G, B, LWIR")
    # as mean
    std: list[float] | None = _key([0.2358, 0.2265, 0.2274, 0.0813], "above 0", names="R, G, B, LWIR")


@dataclass
class DataConfig:
    kind: Literal["kaist", "coco"] = "kaist"  # coco: images and a JSON file per split
    root: str = "data/kaist"  # folder of the data set
    # folder of the images below the JSON file's or the root; empty: searched
    images: str = ""
    # KAIST's XML, bbGt text, or one box per image of a pair
    annotations: Literal["xml", "bbgt", "paired"] = "xml"
    annotations_dir: str = ""  # of KAIST, below the root; empty: searched
    # of KAIST, for one split: xml, bbgt, paired, a folder, or a COCO file with im_name; empty: as above
    train_annotations: str = ""
    val_annotations: str = ""  # empty: those of training
    test_annotations: str = ""  # empty: data.annotations, whatever those of training
    # box of KAIST's paired annotations; modality: lwir for input lwir, else visible
    box_of: Literal["modality", "visible", "lwir", "union"] = "modality"
    # kaist: train-all-02, test-day-20 ..., part of a video, a text file of frames, or several joined by +;
    # coco: a JSON file below the root
    train: str = _key("train-all-02", "not empty")
    train_frames: Literal["all", "with_people"] = "all"  # with_people: those with a person not ignored
    val: str = "set02/V001/I00121-I00189"  # taken out of train
    test: str = "test-all-20"  # split of the final scores
    workers: int = _key(2, "at least 0")  # loader processes; 0: none
    cache: Literal["none", "memory"] = "none"  # keeps decoded frames of training and validation
    on_bad_frame: Literal["stop", "skip"] = "stop"  # unreadable frames; skip lists them
    allow_overlap: bool = False  # splits may share images
    # LWIR values that become 0 and 255; null: the high byte of 16 bits
    lwir_range: list[float] | None = _key(None, names="low, high")
    # range from quantiles of the training split, such as [0.001, 0.999]
    lwir_quantiles: list[float] | None = _key(None, "in 0..1", names="low, high")
    # coco: orientation tags where the JSON file's size fits both
    orientation: Literal["ignore", "follow"] = "ignore"
    # pixels of the original image; lower boxes are ignored in training
    min_height: float = _key(12.0, "at least 0")
    # the data's labels of each class
    classes: dict[str, list[str]] = _key({"person": ["person"]}, "not empty")


@dataclass
class AugmentConfig:
    """Random changes of training images; the arguments of each are a group."""

    names: list[str] = choice(registry.AUGMENTATIONS, ["jitter", "resized_crop", "flip"])  # in order, flip last


@dataclass
class BackboneConfig:
    name: str = choice(registry.BACKBONES, "vgg16-bn")  # the network
    pretrained: str = "none"  # imagenet, none or a file
    levels: list[int] | None = None  # indices of the levels; None: those of the study
    norm: Literal["batch", "frozen", "group"] = "batch"  # frozen: batch norm with fixed statistics


@dataclass
class FusionConfig:
    """Halfway fusion of the two modalities; read only with ``input.modality: halfway``."""

    name: str = choice(registry.STREAM_FUSIONS, "concat")  # joins both streams' maps of a level
    shared: bool = False  # one set of weights for both streams
    # index of the first level that one set of weights computes for both streams; None: none
    shared_from: int | None = _key(None, "at least 0")
    # index of the last level with two streams; None: all
    up_to: int | None = _key(None, "at least 0")


@dataclass
class AdapterConfig:
    kind: str = choice(registry.CONVOLUTIONS, "none")  # convolution that widens each level
    channels: int = _key(512, "at least 1")  # of each output level
    activation: Literal["none", "relu", "silu"] = "none"  # after the convolution and its batch norm
    l2_norm: bool = False  # of the shallowest level, as SSD does with conv4_3
    after_neck: bool = False  # on the neck's outputs instead of its inputs


@dataclass
class NeckConfig:
    """Graph between the levels; read only with a ``topology``."""

    topology: str = choice(registry.TOPOLOGIES, "none")  # study_fpn: the study's top-down path
    channels: int | None = _key(None, "at least 1")  # None: each level keeps its own
    upsample: str = choice(registry.UPSAMPLINGS, "bilinear")  # transposed: a learned convolution
    downsample: str = choice(registry.DOWNSAMPLINGS, "max_pool")  # conv: strided
    # weights of a node's inputs; fast: ReLU(w) over their sum
    fusion: str = choice(registry.FUSIONS, "sum")
    convolution: str = choice(registry.CONVOLUTIONS, "none")  # after the fusion
    activation: Literal["none", "relu", "silu"] = "none"  # of a node
    activation_first: bool = False  # before the convolution (code of EfficientDet and NAS-FPN)
    repeats: int = _key(1, "at least 1")  # of the graph, each with own weights
    project: Literal["edge", "level"] = "edge"  # 1x1 convolutions to the neck's width: per edge or per level
    # coarser input levels made by pooling (EfficientDet's P6, P7)
    extra_levels: int = _key(0, "at least 0")
    outputs: int | None = _key(None, "at least 1")  # number of finest levels returned; None: the topology's
    norm_eps: float = _key(1e-5, "above 0")  # of its batch norms
    norm_momentum: float = _key(0.1, "in 0..1")  # share of the new batch in the running statistics


@dataclass
class ExtrasConfig:
    """SSD's extra levels on the deepest one: 1x1, then 3x3."""

    channels: int = _key(512, "at least 2")  # of each extra level
    strides: list[int] = _key([2, 1, 1], "at least 1")  # of the 3x3 convolutions; [] for no levels


@dataclass
class AnchorsConfig:
    # per level, side of the square of equal area
    sizes: list[float] = _key([40.0, 80.0, 160.0, 200.0, 280.0, 360.0], "above 0, not empty")
    ratios: list[float] = _key([0.5, 1.0], "above 0, not empty")  # width / height
    # factors of the size, with every ratio
    scales: list[float] = _key([1.0, 2 ** (1 / 3), 2 ** (2 / 3)], "above 0, not empty")
    # (height, width) to which sizes refer; None: the input's
    reference_size: list[int] | None = _key([512, 640], "at least 32, at most 16384", names="height, width")
    # of the box code: centres, sizes; EfficientDet: 1, 1
    variances: list[float] = _key([0.1, 0.2], "above 0", names="centre, size")


@dataclass
class HeadConfig:
    # ssd: 3x3 convolutions per level; efficientdet: nets shared by levels
    kind: str = choice(registry.HEADS, "ssd")


@dataclass
class MatcherConfig:
    """Assigns anchors to objects."""

    name: str = choice(registry.MATCHERS, "max_iou")  # max_iou: SSD's; atss: a threshold per object


@dataclass
class ClassLossConfig:
    """Loss of the class logits."""

    name: str = choice(registry.CLASS_LOSSES, "multibox")  # multibox: cross-entropy with mined negatives


@dataclass
class BoxLossConfig:
    """Loss of the boxes of positive anchors."""

    name: str = choice(registry.BOX_LOSSES, "smooth_l1")  # giou and ciou: of the boxes, others of the box code
    weight: float = _key(1.0, "at least 0")  # relative to the class loss


@dataclass
class PostprocessConfig:
    score_threshold: float = _key(0.01, "in 0..1")  # lower scores are dropped
    pre_nms_top_k: int = _key(1000, "at least 1")  # boxes per image that enter NMS
    nms_iou: float = _key(0.45, "in 0..1")  # IoU above which the lower-scoring box is dropped
    top_k: int = _key(200, "at least 1")  # boxes per image that remain
    temperature: float = _key(1.0, "above 0")  # of scores, after all else; `visualize calibration` fits it


@dataclass
class OptimizerConfig:
    name: str = choice(registry.OPTIMIZERS, "sgd")  # torch's
    lr: float = _key(1e-4, "above 0")  # learning rate
    weight_decay: float = _key(5e-4, "at least 0")  # see decay_norms
    bias_lr_factor: float = _key(2.0, "at least 0")  # times lr
    backbone_lr_factor: float = _key(1.0, "at least 0")  # times lr
    decay_norms: bool = True  # weight decay on biases and norm factors too
    gradient_clip: float = _key(0.0, "at least 0")  # largest gradient norm; 0: none
    accumulate: int = _key(1, "at least 1")  # batches per step


@dataclass
class ScheduleConfig:
    """The learning rate over a run."""

    name: str = choice(registry.SCHEDULES, "multistep")  # plateau: by its monitor
    warmup_steps: int = _key(0, "at least 0")  # steps of linear rise


@dataclass
class TrainerConfig:
    epochs: int = _key(40, "at least 1")  # passes over the training split
    batch_size: int = _key(16, "at least 1")  # images per batch, over all processes
    seed: int = _key(0, "at least 0")  # of all random numbers
    ema_decay: float = _key(0.0, "at least 0, below 1")  # of the moving average, at most (1 + t) / (10 + t); 0: none
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"  # auto: a GPU if available
    devices: int = _key(1, "at least 1")  # processes per machine, each with a GPU or share of the cores
    num_nodes: int = _key(1, "at least 1")  # machines
    process_timeout: float = _key(600.0, "above 0")  # seconds to wait for other processes
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"  # of activations; weights stay 32
    threads: int = _key(0, "at least 0")  # 0: torch's own choice
    compile: bool = False  # torch.compile: minutes at the start; needs a C++ compiler
    validate_every: int = _key(1, "at least 1")  # epochs
    monitor: str = "val/MR/reasonable_all"  # chooses `best`
    test_checkpoint: Literal["best", "last"] = "best"  # which weights are tested
    # validation pictures in TensorBoard; 0: none, nor the MR-FPPI curve
    panel_images: int = _key(8, "at least 0")


@dataclass
class ExperimentConfig:
    """A complete experiment.

    ``name`` defaults to the file's stem; ``changes``: keys that differ from the base; ``ancestors``: names of its base,
    that one's base and so on, filled by loading; ``plugins``: modules of its parts, which it does not import.
    """

    name: str = ""
    description: str = ""
    changes: list[str] = field(default_factory=list)
    ancestors: list[str] = field(default_factory=list)
    plugins: list[str] = field(default_factory=list)
    # run or weights file to start from, relative to the working folder
    init_from: str = ""
    input: InputConfig = field(default_factory=InputConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = _group(AugmentConfig)
    backbone: BackboneConfig = _group(BackboneConfig)
    fusion: FusionConfig = _group(FusionConfig)
    adapter: AdapterConfig = _group(AdapterConfig)
    neck: NeckConfig = _group(NeckConfig)
    extras: ExtrasConfig = field(default_factory=ExtrasConfig)
    anchors: AnchorsConfig = field(default_factory=AnchorsConfig)
    head: HeadConfig = _group(HeadConfig)
    matcher: MatcherConfig = _group(MatcherConfig)
    class_loss: ClassLossConfig = _group(ClassLossConfig)
    box_loss: BoxLossConfig = _group(BoxLossConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    optimizer: OptimizerConfig = _group(OptimizerConfig)
    schedule: ScheduleConfig = _group(ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
