"""The schema of an experiment: every key, its type and what it is when nobody says otherwise.

How a file becomes an :class:`ExperimentConfig` stands in :mod:`ssd_effnet.config`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

# OmegaConf reads the annotations of these classes: they are evaluated, not postponed


def _list(*values: Any) -> Any:
    return field(default_factory=lambda: list(values))


@dataclass
class InputConfig:
    """What enters the detector."""

    size: list[int] = _list(512, 640)  # (height, width)
    modality: Literal["visible", "lwir", "early", "halfway"] = "visible"
    normalize: bool = True
    mean: list[float] = _list(0.3465, 0.3219, 0.2842, 0.1598)  # R, G, B, LWIR in 0..1
    std: list[float] = _list(0.2358, 0.2265, 0.2274, 0.0813)


@dataclass
class DataConfig:
    kind: Literal["kaist", "coco"] = "kaist"
    root: str = "data/kaist"
    annotations: Literal["xml", "bbgt", "paired"] = "xml"
    train: str = "train-all-02"
    val: str = "set02/V001/I00121-I00189"  # cut out of train
    test: str = "test-all-20"
    workers: int = 2
    cache: Literal["none", "memory", "disk"] = "none"  # decoded frames of training and validation, once read
    cache_folder: str = ""  # of `disk`, on a disk of this machine; empty: in the system's folder for temporary files
    on_bad_frame: Literal["stop", "skip"] = "stop"
    min_height: float = 12.0  # lower boxes are ignore regions in training, pixels of the original image


@dataclass
class AugmentConfig:
    jitter: float = 0.3
    flip: float = 0.5
    crop: Literal["resized", "ssd", "none"] = "resized"
    crop_scale: list[float] = _list(0.25, 4.0)  # area of the crop over area of the image; above 1 it expands
    crop_ratio: list[float] = _list(0.8, 1.2)
    crop_probability: float = 0.5


@dataclass
class BackboneConfig:
    name: str = "vgg16-bn"
    pretrained: str = "none"  # imagenet, none or a file
    levels: list[int] | None = None  # None: those of the study
    strides: Literal["halving", "published"] = "halving"
    norm: Literal["batch", "frozen", "group"] = "batch"
    drop_connect: float | None = None  # None: as published


@dataclass
class FusionConfig:
    """Halfway fusion of the two modalities; read only with ``input.modality: halfway``."""

    kernel_size: int = 1  # of the convolutions that join the streams, 1 or 3
    shared: bool = False  # one set of stream weights, or one a modality
    up_to: int | None = None  # place of the last level to which the streams stay apart; None: all of them


@dataclass
class AdapterConfig:
    kind: Literal["none", "conv1x1", "conv3x3"] = "none"
    channels: int = 512
    activation: Literal["none", "relu", "silu"] = "none"
    l2_norm: bool = False  # of the shallowest level, as SSD does with conv4_3
    after_neck: bool = False  # the study's necks work on the backbone's own widths; what leaves them is widened


@dataclass
class NeckConfig:
    """A graph between the levels, see :class:`ssd_effnet.models.necks.GraphNeck`; only read with a ``topology``."""

    topology: Literal[
        "none", "study_fpn", "fpn", "panet", "nas_fpn", "fully_connected", "simplified_panet", "bifpn"
    ] = "none"
    channels: int | None = None  # None: each level keeps its own
    upsample: Literal["bilinear", "nearest", "transposed"] = "bilinear"
    downsample: Literal["max_pool", "conv"] = "max_pool"
    fusion: Literal["sum", "unbounded", "softmax", "fast"] = "sum"
    convolution: Literal["none", "conv1x1", "conv3x3", "separable"] = "none"  # after the fusion
    activation: Literal["none", "relu", "silu"] = "none"
    activation_first: bool = False  # before the convolution, as in the code of EfficientDet and NAS-FPN
    repeats: int = 1
    project: Literal["edge", "level"] = "edge"  # where a given map takes the width of the neck
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
    kind: Literal["ssd", "efficientdet"] = "ssd"
    classes: list[str] = _list("person")  # background is added, index 0
    layers: int = 3  # efficientdet: separable convolutions of the class and box nets before their last one


@dataclass
class LossConfig:
    kind: Literal["multibox", "focal"] = "multibox"
    iou_threshold: float = 0.5
    negative_iou: float | None = None  # anchors without object from this IoU on are ignored; None: they are negative
    negative_ratio: float = 3.0  # multibox
    min_negatives: int = 16  # multibox: an image, so that one without people teaches something
    alpha: float = 0.25  # focal
    gamma: float = 1.5  # focal
    prior: float = 0.01  # focal: the score of every anchor before training
    localization: Literal["smooth_l1", "l1", "huber"] = "smooth_l1"
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
    name: Literal["sgd", "rmsprop", "adamw"] = "sgd"
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
    name: Literal["multistep", "cosine", "plateau", "constant"] = "multistep"
    milestones: list[float] = _list(0.5, 0.9)  # shares of the epochs
    gamma: float = 0.1
    patience: int = 3  # validations without progress before plateau cuts the rate
    monitor: Literal["val/MR/reasonable_all", "val/loss_total"] = "val/MR/reasonable_all"  # what plateau watches
    warmup_steps: int = 0
    final_lr_factor: float = 0.01  # where cosine ends


@dataclass
class TrainerConfig:
    epochs: int = 40
    batch_size: int = 16
    seed: int = 0
    ema_decay: float = 0.0  # 0: no moving average
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    threads: int = 0  # 0: torch's own choice
    channels_last: bool = True
    # auto: threads, layout and allocator of a CPU are chosen by what is fastest at the start; manual: the keys above
    runtime: Literal["manual", "auto"] = "manual"
    compile: bool = False  # torch.compile of the detector: minutes at the start, and a C++ compiler is needed
    validate_every: int = 1  # epochs
    monitor: Literal["val/MR/reasonable_all", "val/AP", "val/AP50", "val/loss_total"] = (
        "val/MR/reasonable_all"  # what chooses `best`
    )
    test_checkpoint: Literal["best", "last"] = "best"
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
