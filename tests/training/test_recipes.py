"""Optimisers, schedules, and what a run does when the figures go wrong."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from untrained import LITE0, SMALL, Stop, of_pairs, stop_at
from waits import NoWaits

from data_kaist.structures import Batch, Targets
from ssd_effnet.build import (
    build_criterion,
    build_detector,
    build_optimizer,
    build_schedule,
    build_skeleton,
    parameter_groups,
)
from ssd_effnet.config.loading import ConfigError, ExperimentConfig, load_experiment
from ssd_effnet.models.layers import replace_batch_norm
from ssd_effnet.structures import RawOutputs
from ssd_effnet.training import preflight
from ssd_effnet.training import run as running
from ssd_effnet.training.callbacks import EMAWeightAveraging, ModelCheckpoint
from ssd_effnet.training.module import NonFiniteError
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import RunDirectory, RunError


def one_weight(e: ExperimentConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=e.optimizer.lr)


def rates(e: ExperimentConfig, steps: int) -> list[float]:
    """The rate of each optimiser step of a run."""
    optimizer = one_weight(e)
    schedule = build_schedule(e, optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def default(*overrides: str) -> ExperimentConfig:
    return load_experiment("00_vgg16", overrides)


def test_multistep_falls_at_half_and_nine_tenths() -> None:
    assert rates(default(), 20) == pytest.approx([1e-4] * 10 + [1e-5] * 8 + [1e-6] * 2)


def test_warm_up_is_a_straight_line_to_the_full_rate() -> None:
    e = default("schedule.name=constant", "schedule.warmup_steps=3", "optimizer.lr=1.0")
    assert rates(e, 6) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_cosine_runs_from_the_full_rate_to_the_final_one() -> None:
    e = default("schedule.name=cosine", "schedule.warmup_steps=1", "schedule.final_lr_factor=0.2", "optimizer.lr=1.0")
    # progress 0, 1/4, 2/4, 3/4 of the four steps after warm-up; 0.2 + 0.8 * (1 + cos(pi * progress)) / 2
    half = math.sqrt(0.5)
    assert rates(e, 5) == pytest.approx([0.5, 1, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half)])


def test_plateau_cuts_after_its_patience() -> None:
    e = default("schedule.name=plateau", "schedule.patience=1", "schedule.gamma=0.5", "optimizer.lr=1.0")
    optimizer = one_weight(e)
    schedule: Any = build_schedule(e, optimizer, 100)
    found = []
    for miss_rate in (50.0, 40.0, 45.0, 45.0, 45.0, 30.0):
        schedule.step(miss_rate)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == [1, 1, 1, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ((), {"backbone": (1e-4, 5e-4, 2), "backbone_bias": (2e-4, 5e-4, 2)}),
        (
            ("optimizer.backbone_lr_factor=0.1", "optimizer.bias_lr_factor=1", "optimizer.decay_norms=false"),
            {"backbone": (1e-5, 5e-4, 1), "backbone_norm": (1e-5, 0, 1), "backbone_bias": (1e-5, 0, 2)},
        ),
    ],
)
def test_backbone_norms_and_biases_have_their_own_rate_and_decay(overrides: tuple[str, ...], wanted: Any) -> None:
    e = default(*overrides)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    detector = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(4, 2)})
    groups: list[dict[str, Any]] = parameter_groups(e, detector)
    found = {g["name"]: (pytest.approx(g["lr"]), g["weight_decay"], len(g["params"])) for g in groups}
    bias = (1e-4 * e.optimizer.bias_lr_factor, 5e-4 if e.optimizer.decay_norms else 0, 1)
    assert found == wanted | {"head": (1e-4, 5e-4, 1), "head_bias": bias}


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_every_trainable_parameter_is_in_exactly_one_group(norm: str) -> None:
    keys = ("backbone.pretrained=imagenet", f"backbone.norm={norm}", "input.modality=halfway")
    e = load_experiment(LITE0, [*SMALL, *keys])
    detector, _ = build_detector(e, pretrained=False)
    grouped: list[Any] = [p for group in parameter_groups(e, detector) for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(map(id, grouped)) == sorted(id(p) for p in detector.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["schedule.name=plateau", "data.val="], "plateau watches val/MR/reasonable_all, but data.val names no"),
        (["schedule.name=plateau", "schedule.warmup_steps=5"], "must be 0 with plateau"),
        (["trainer.validate_every=50"], "at most trainer.epochs"),
        (["schedule.gamma=1.0"], "must be below 1"),
        (["backbone.norm=frozen", "backbone.pretrained=none"], "statistics to freeze"),
        (["fusion.kernel_size=2"], "must be 1 or 3"),
    ],
)
def test_recipes_that_cannot_be_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        default(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ("schedule.monitor=val/loss_total", "trainer.ema_decay=0"),
        ("schedule.monitor=val/MR/reasonable_all", "trainer.validate_every=2"),
    ],
    ids=["loss", "MR, EMA, every second epoch"],
)
def test_plateau_follows_what_it_watches(few_pairs: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """The rates in the log are those that the logged metric calls for."""
    recipe = ("schedule.name=plateau", "schedule.warmup_steps=0", "schedule.patience=0", "schedule.gamma=0.5")
    e = of_pairs(few_pairs, *recipe, "optimizer.lr=0.02", "trainer.epochs=6", *overrides)
    run(e, tmp_path)
    rows = RunDirectory.of(e, tmp_path).metrics()
    expected, rate, best = [], 0.02, math.inf
    for epoch, row in enumerate(rows, start=1):
        expected.append(rate)
        if epoch % e.trainer.validate_every == 0:
            value = row[e.schedule.monitor]
            rate *= 1 if value < best * (1 - 1e-4) else 0.5
            best = min(best, value)
    assert [row["lr/head"] for row in rows] == pytest.approx(expected)
    assert expected[-1] < 0.02  # else nothing was shown


def test_a_metric_that_never_moves_is_named_and_chooses_the_last_epoch(few_pairs: Path, tmp_path: Path) -> None:
    """Every second epoch is validated, the others have no figure of it; resumed, plateau goes on where it stood."""
    recipe = ("schedule.name=plateau", "schedule.patience=0", "trainer.epochs=5", "trainer.validate_every=2")
    # nothing is found, so MR stays at 100 %
    e = of_pairs(few_pairs, *recipe, "postprocess.score_threshold=1")
    lines: list[str] = []
    results = run(e, tmp_path / "whole", echo=lines.append)
    whole = RunDirectory.of(e, tmp_path / "whole")
    assert [row["epoch"] for row in whole.metrics() if "val/loss_total" in row] == [1, 3]
    assert [line[:9] for line in lines if "val MR" in line and line.startswith("epoch")] == ["epoch 2/5", "epoch 4/5"]
    assert whole.metrics()[-1]["lr/head"] < whole.metrics()[0]["lr/head"]
    validated = {"monitor": e.trainer.monitor, "best": 100, "first": 100}
    assert results["epoch"] == 4 and results["val"].items() >= validated.items()
    (said,) = [line for line in lines if line.startswith("val/MR/reasonable_all was never better")]
    assert "100%; best.ckpt is of epoch 4" in said
    directory = RunDirectory.of(e, tmp_path / "resumed")
    for epoch, resume in ((1, False), (4, False)):  # before the first checkpoint, so that the second one starts over
        with pytest.raises(Stop):
            run(e, tmp_path / "resumed", resume=resume, echo=stop_at(epoch))
        assert len(list(directory.path.glob("events.out.tfevents.*"))) == 1
    run(e, tmp_path / "resumed", resume=True)
    assert directory.metrics_file.read_bytes() == whole.metrics_file.read_bytes()
    for path in (whole.path, directory.path):
        seen = EventAccumulator(str(path)).Reload()
        assert [event.step for event in seen.Scalars("val/loss_total")] == [3, 7]
        steps = [event.step for event in seen.Scalars("train_epoch/loss_total")]
        assert steps == sorted(set(steps)) and len(steps) == 5


def test_a_run_that_was_moved_keeps_its_best_epoch(tmp_path: Path) -> None:
    """Lightning forgets the best score where the folder is another one, and keeps any next epoch as the best."""
    before, after = (ModelCheckpoint(tmp_path / name, "best", monitor="loss", mode="min") for name in ("old", "new"))
    before.best_model_path = before.kth_best_model_path = str(tmp_path / "old" / "best.ckpt")
    before.best_model_score = before.kth_value = torch.tensor(1.0)
    before.best_k_models = {before.best_model_path: before.best_model_score}
    after.load_state_dict(before.state_dict())
    assert after.best_k_models == {str(tmp_path / "new" / "best.ckpt"): 1.0} and after.best_model_score == 1
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    assert [after.check_monitor_top_k(trainer, torch.tensor(loss)) for loss in (2.0, 1.0, 0.5)] == [False, True, True]
    assert after.best_model_path == after.kth_best_model_path == str(tmp_path / "new" / "best.ckpt")


def test_a_moving_average_forgets_the_first_step_of_a_short_run() -> None:
    """150 steps at 0.9998: it kept 97 % of the first one's weights."""
    model, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    short = EMAWeightAveraging(decay=0.9998)
    expected = 0.0
    for step in range(150):
        model.weight.data.fill_(step)
        short.follow(average, model, step)
        decay = min(0.9998, (1 + step) / (10 + step)) if step else 0
        expected = decay * expected + (1 - decay) * step
    assert average.weight.item() == pytest.approx(expected) and expected > 130
    average.weight.data.fill_(1)
    model.weight.data.fill_(0)
    EMAWeightAveraging(decay=0.9).follow(average, model, 1000)
    assert average.weight.item() == pytest.approx(0.9)


@pytest.mark.parametrize(("size", "fits"), [("[32,32]", False), ("[64,96]", True)])
def test_a_norm_that_would_see_one_value_is_refused(size: str, fits: bool, few_pairs: Path, tmp_path: Path) -> None:
    e = of_pairs(few_pairs, "trainer.batch_size=1", f"input.size={size}")
    detector = build_detector(e)[0]
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    preflight.refuse_single_values(detector, e, 2)
    if fits:
        preflight.refuse_single_values(detector, e, 1)
        assert detector.training and all(torch.equal(before[n], t) for n, t in detector.state_dict().items())
        return
    with pytest.raises(RunError, match=r"would normalise a single value: its map is 1x1 pixels.* trainer\.batch_size"):
        run(e, tmp_path)
    replace_batch_norm(detector.parts["extras"], "group")  # 16 groups of 16 channels, in batches of any size
    with pytest.raises(RunError, match=r"would normalise a single value: .* a group is one channel"):
        preflight.refuse_single_values(detector, e, 2)


def test_a_warm_up_longer_than_the_run_is_refused(few_pairs: Path, tmp_path: Path) -> None:
    e = of_pairs(few_pairs, "schedule.warmup_steps=4", "trainer.epochs=4", "optimizer.accumulate=2")
    with pytest.raises(RunError, match=r"schedule\.warmup_steps is 4, but the run has 4 steps \(trainer\.epochs 4, 2 "):
        run(e, tmp_path)
    e.schedule.warmup_steps = 3
    preflight.refuse_to_end_warming_up(e, 2)
    assert load_experiment(LITE0, tiny=True).schedule.warmup_steps == 0  # of an experiment with 50


@pytest.mark.parametrize(
    "overrides",
    [
        ("input.modality=visible", "optimizer.accumulate=2", "optimizer.gradient_clip=0.1"),
        ("input.modality=lwir", "trainer.precision=bf16-mixed", "backbone.norm=group"),
        ("input.modality=halfway", "optimizer.name=rmsprop", "optimizer.backbone_lr_factor=0.1", "trainer.ema_decay=0"),
    ],
    ids=["accumulate, clip, EMA", "bf16, group norm", "rmsprop, slow backbone"],
)
def test_recipes_and_modalities_run(few_pairs: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    e = of_pairs(few_pairs, *overrides)
    run(e, tmp_path)
    (row,) = RunDirectory.of(e, tmp_path).metrics()
    assert math.isfinite(row["val/loss_total"])
    assert row["step"] == 2 / e.optimizer.accumulate  # four frames, two a batch


def test_the_keys_of_training_reach_their_places(
    few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def trainer(**keywords: Any) -> None:
        given.update(keywords)
        raise Stop

    monkeypatch.setattr("ssd_effnet.training.run.Trainer", trainer)
    keys = "trainer.precision=bf16-mixed optimizer.gradient_clip=0.5 optimizer.accumulate=2 trainer.epochs=7"
    e = of_pairs(few_pairs, *keys.split(), "trainer.validate_every=3")
    with pytest.raises(Stop):
        run(e, tmp_path)
    names = ("precision", "gradient_clip_val", "accumulate_grad_batches", "max_epochs", "check_val_every_n_epoch")
    assert [given[name] for name in names] == ["bf16-mixed", 0.5, 2, 7, 3]
    with pytest.raises(Stop):  # two batches make one whole step, not an eighth of eight
        run(of_pairs(few_pairs, "optimizer.accumulate=8", "name=short"), tmp_path)
    assert given["accumulate_grad_batches"] == 2
    e = of_pairs(few_pairs, "optimizer.name=sgd", "optimizer.momentum=0.7", "optimizer.weight_decay=0.01")
    groups = build_optimizer(e, build_skeleton(e)).param_groups
    assert {group["momentum"] for group in groups} == {0.7} and 0.01 in {group["weight_decay"] for group in groups}


class Spoilt(nn.Module):
    """A criterion that goes wrong after some calls: in its value, or only in its gradient."""

    def __init__(self, criterion: nn.Module, good: int, value: bool) -> None:
        super().__init__()
        self.criterion, self.good, self.value = criterion, good, value
        self.calls = 0

    def forward(self, outputs: RawOutputs, targets: Targets) -> Any:
        losses = self.criterion(outputs, targets)
        self.calls += torch.is_grad_enabled()
        if self.calls > self.good and torch.is_grad_enabled():
            # the square root of 0 is 0, but its slope is infinite, and times 0 not a number
            nothing = (outputs.cls_logits.sum() * 0).sqrt()
            losses.total = losses.total * math.nan if self.value else losses.total + nothing
        return losses


def spoil(monkeypatch: pytest.MonkeyPatch, good: int, value: bool) -> None:
    monkeypatch.setattr(running, "build_criterion", lambda e: Spoilt(build_criterion(e), good, value))


class Watched(Callback):
    """Lets nothing wait for a device from forward to backward, where losses are not read, and keeps frames' names."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []
        self.mode: NoWaits | None = None

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.names.append(list(batch.names))
        if not trainer.is_last_batch:
            self.mode = NoWaits()
            self.mode.__enter__()

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
        self.mode = None


@pytest.mark.parametrize("good", [2, 3])  # two steps an epoch: the first or the second one of the second epoch
def test_a_non_finite_loss_names_its_step_and_frames_and_leaves_the_last_checkpoint(
    good: int, few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = of_pairs(few_pairs, "trainer.epochs=3")
    spoil(monkeypatch, good, value=True)
    watched = Watched()
    with pytest.raises(NonFiniteError, match=rf"nan at step {good} \(epoch 1\) on the frames ") as caught:
        run(e, tmp_path, callbacks=[watched])
    assert f" {', '.join(watched.names[good])}; " in str(caught.value)
    assert len(watched.names) == 4 and watched.names[2] != watched.names[3]  # both are read after the second
    checkpoint = torch.load(RunDirectory.of(e, tmp_path).last, weights_only=True)
    assert checkpoint["epoch"] == 0
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint["state_dict"].values())


@pytest.mark.parametrize(("val", "says"), [("", "the weights backbone"), ("val.json", "the loss is nan")])
def test_weights_that_are_not_finite_never_reach_a_checkpoint(
    few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val: str, says: str
) -> None:
    """The last step of an epoch has a finite loss and a gradient that is not: no later loss would tell."""
    e = of_pairs(few_pairs, f"data.val={val}", "trainer.ema_decay=0", "optimizer.gradient_clip=0", "trainer.epochs=2")
    spoil(monkeypatch, 3, value=False)
    with pytest.raises(NonFiniteError, match=says):
        run(e, tmp_path)
    assert torch.load(RunDirectory.of(e, tmp_path).last, weights_only=True)["epoch"] == 0
