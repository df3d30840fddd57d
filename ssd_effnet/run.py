"""One run: an experiment with a seed, from config to ``results.json`` in a directory that tells all."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, Timer, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from data_kaist.dataset import DetectionDataset, EpochSampler, collate, fingerprint
from data_kaist.detections import write_coco_results, write_kaist
from data_kaist.errors import DataError
from data_kaist.loading import image_ids
from data_kaist.transforms import Sample
from ssd_effnet.build import (
    build_criterion,
    build_dataset,
    build_detector,
    build_optimizer,
    build_postprocess,
    build_schedule,
)
from ssd_effnet.config import ExperimentConfig, differences, load_experiment, save_experiment, settings
from ssd_effnet.evaluation import Scores, miss_rate_figure, write_results
from ssd_effnet.metrics.miss_rate import MissRateEvaluator
from ssd_effnet.metrics.subsets import SUBSETS
from ssd_effnet.models.modality import CHANNEL_NAMES, CHANNELS
from ssd_effnet.structures import Annotations
from ssd_effnet.training import LOG_EVERY, EpochLines, FusionWeights, MetricsCsv, Pictures, TrainingModule

PACKAGES = ("torch", "lightning", "numpy", "opencv-python", "opencv-python-headless", "efficientnet-pytorch")


class RunError(RuntimeError):
    """A sentence about why a run cannot start or go on."""


def run_directory(experiment: ExperimentConfig, out: Path) -> Path:
    """``<out>/<experiment>/seed<k>``."""
    return out / experiment.name / f"seed{experiment.trainer.seed}"


def run(
    experiment: ExperimentConfig,
    out: Path,
    *,
    resume: bool = False,
    echo: Callable[[str], None] = print,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train, choose, test once and write everything down; return what ``results.json`` holds.

    Args:
        experiment: resolved.
        out: folder of runs.
        resume: go on from ``checkpoints/last.ckpt`` where there is one; a finished run is returned as it is.
        echo: told one line a step of the way.
        callbacks: of Lightning, beside the run's own; a search prunes with one.

    Raises:
        RunError, ConfigError, DataError, WeightsError, NonFiniteLossError: one sentence each.
    """
    directory = run_directory(experiment, out)
    results_file = directory / "results.json"
    last = directory / "checkpoints" / "last.ckpt"
    _refuse_to_mix(experiment, directory, resume)
    if resume and results_file.is_file():
        echo(f"{directory} is finished; nothing to do")
        finished: dict[str, Any] = json.loads(results_file.read_text(encoding="utf-8"))
        return finished

    t = experiment.trainer
    if t.accelerator == "gpu" and not torch.cuda.is_available():
        raise RunError("trainer.accelerator is gpu, but torch finds no CUDA device here; set it to auto or cpu")
    if t.devices * t.num_nodes > 1:
        raise RunError(
            "trainer.devices and trainer.num_nodes: one run on several devices is not there yet; set both to 1"
        )
    if len(experiment.head.classes) > 1:
        raise RunError(f"head.classes: the data name one class, person, not {len(experiment.head.classes)}")
    seed_everything(t.seed, workers=True, verbose=False)
    if t.threads:
        torch.set_num_threads(t.threads)
    stages = [stage for stage in ("train", "val", "test") if getattr(experiment.data, stage)]
    datasets = {stage: build_dataset(experiment, stage) for stage in stages}
    for stage, dataset in datasets.items():
        if dataset.skipped:
            echo(f"{stage}: {len(dataset.skipped):,} bad frames are left out; environment.json lists them")
    _refuse_to_watch_nobody(experiment, datasets)
    detector, report = build_detector(experiment, pretrained=not (resume and last.is_file()))
    if report is not None:
        echo(f"pretrained {experiment.backbone.name}: {report}")
    if t.channels_last:
        detector = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    directory.mkdir(parents=True, exist_ok=True)
    save_experiment(experiment, directory / "config.yaml")
    environment = _remember(describe_environment(datasets, detector), directory / "environment.json", last.is_file())
    module = TrainingModule(
        detector,
        build_criterion(experiment),
        build_postprocess(experiment),
        lambda model, steps: _optimizers(experiment, model, steps),
        {stage: _annotations(dataset) for stage, dataset in datasets.items()},
        [CHANNEL_NAMES[c] for c in CHANNELS[experiment.input.modality]],
        dataclasses.asdict(experiment),
    )
    timer = Timer()  # its state travels in the checkpoint: a resumed run took the time of all its parts
    trainer, best = _trainer(experiment, directory, datasets, echo, [timer, *callbacks])
    loaders = {stage: _loader(experiment, dataset, stage) for stage, dataset in datasets.items()}

    try:
        trainer.fit(
            module,
            loaders["train"],
            loaders.get("val"),
            ckpt_path=last if resume and last.is_file() else None,
            weights_only=True,
        )
    except DataError as error:
        raise _without_traceback(error) from error
    except SystemExit:  # Lightning's answer to Ctrl+C
        if not trainer.interrupted:
            raise
        raise RunError(
            f"{directory}: stopped in epoch {trainer.current_epoch + 1}; --resume goes on from {last}"
        ) from None

    chosen = last.with_name("best.ckpt") if t.test_checkpoint == "best" and "val" in datasets else last
    checkpoint = torch.load(chosen, weights_only=True, map_location="cpu")
    results: dict[str, Any] = {
        "experiment": experiment.name,
        "seed": t.seed,
        "checkpoint": chosen.name,
        "epoch": int(checkpoint["epoch"]) + 1,
        "epochs": t.epochs,
        "minutes": round(timer.time_elapsed() / 60, 2),
        "parameters": environment["parameters"],
        "skipped_frames": environment["skipped_frames"],
    }
    if best.best_model_score is not None:
        results["val"] = {"monitor": t.monitor, "best": float(best.best_model_score)}
    if "test" in datasets:
        # loaded here: given the path, Lightning would take the weights beside the moving average that was validated
        module.load_state_dict(checkpoint["state_dict"])
        try:
            trainer.test(module, loaders["test"], verbose=False)
        except DataError as error:
            raise _without_traceback(error) from error
        table, scores = module.results["test"]
        frames = datasets["test"].frames
        ids, category = image_ids(frames), frames[0].category_id
        write_coco_results(directory / "detections.json", table, image_ids=ids, category_id=category)
        places = np.array([frame.place for frame in frames])
        write_kaist(directory / "detections_kaist.txt", replace(table, image_index=places[table.image_index]))
        results["test"] = {"split": experiment.data.test, "images": len(datasets["test"]), **scores.as_dict()}
        _log_test(trainer, experiment, scores)
    write_results(results_file, results)
    return results


def describe_environment(datasets: dict[str, DetectionDataset], detector: nn.Module) -> dict[str, Any]:
    """Versions, machine, code and data: what a reader needs to trust a result or to repeat it."""
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "git": _git_state(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "parameters": sum(p.numel() for p in detector.parameters()),
        "data": {s: {"frames": len(d), "fingerprint": fingerprint(d.frames)} for s, d in datasets.items()},
        "skipped_frames": {s: d.skipped for s, d in datasets.items() if d.skipped},
    }


def _refuse_to_mix(experiment: ExperimentConfig, directory: Path, resume: bool) -> None:
    """A directory holds one run of one config."""
    written = directory / "config.yaml"
    if not written.is_file():
        return
    if not resume:
        raise RunError(f"{directory}: holds a run already; add --resume to go on with it, or choose another --out")
    changed = differences(load_experiment(written), experiment)
    if changed:
        raise RunError(f"{directory}: was started with another config; these differ: {', '.join(changed)}")


def _remember(environment: dict[str, Any], path: Path, resumed: bool) -> dict[str, Any]:
    """Write the environment; a resumed run keeps the one it was started in and lists the later ones below it.

    Raises:
        RunError: the data are not those that the run was started with.
    """
    if resumed and path.is_file():
        first = json.loads(path.read_text(encoding="utf-8"))
        changed = [stage for stage, data in first["data"].items() if environment["data"].get(stage) != data]
        if changed:
            raise RunError(
                f"{path.parent}: its data have changed since it was started ({', '.join(changed)}); bring them "
                "back, or choose another --out"
            )
        environment = first | {"resumed": [*first.get("resumed", []), environment]}
    write_results(path, environment)
    return environment


def _refuse_to_watch_nobody(experiment: ExperimentConfig, datasets: dict[str, DetectionDataset]) -> None:
    """A miss rate needs somebody to miss: found out before hours are spent."""
    if "val" not in datasets:
        return
    watched = {"trainer.monitor": experiment.trainer.monitor}
    if experiment.schedule.name == "plateau":
        watched["schedule.monitor"] = experiment.schedule.monitor
    evaluator = MissRateEvaluator(_annotations(datasets["val"]))
    for key, monitor in watched.items():
        subset = monitor.removeprefix("val/MR/")
        if subset in SUBSETS and evaluator.ignored(SUBSETS[subset]).all():
            raise RunError(
                f"the validation split {experiment.data.val!r} holds nobody of the subset {subset}, so {monitor} says "
                f"nothing; set {key} to another metric (val/loss_total is always there) or choose another data.val"
            )


def _without_traceback(error: DataError) -> DataError:
    """The error's own sentence: a loader's worker puts its traceback before it."""
    kind = type(error)
    return kind(str(error).strip().rpartition("\n")[2].removeprefix(f"{kind.__module__}.{kind.__qualname__}: "))


def _annotations(dataset: DetectionDataset) -> list[Annotations]:
    return [frame.annotations for frame in dataset.frames]


def _optimizers(experiment: ExperimentConfig, model: nn.Module, steps: int) -> dict[str, Any]:
    optimizer = build_optimizer(experiment, model)
    schedule = build_schedule(experiment, optimizer, steps)
    plateau = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": schedule, "interval": "epoch" if plateau else "step"}
        | ({"monitor": experiment.schedule.monitor, "frequency": experiment.trainer.validate_every} if plateau else {}),
    }


def _loader(experiment: ExperimentConfig, dataset: DetectionDataset, stage: str) -> DataLoader[Sample]:
    workers = experiment.data.workers
    train = stage == "train"
    batch_size = min(experiment.trainer.batch_size, len(dataset))
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), shuffle=train, seed=experiment.trainer.seed),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        drop_last=train,
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread,
    )


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)


def _trainer(
    experiment: ExperimentConfig,
    directory: Path,
    datasets: dict[str, DetectionDataset],
    echo: Callable[[str], None],
    more: Sequence[Callback],
) -> tuple[Trainer, ModelCheckpoint]:
    t = experiment.trainer
    keep = partial(ModelCheckpoint, dirpath=directory / "checkpoints", enable_version_counter=False)
    mode = "max" if t.monitor.startswith("val/AP") else "min"
    best = keep(
        filename="best", monitor=t.monitor, mode=mode, every_n_epochs=t.validate_every, save_on_train_epoch_end=True
    )
    # a callback of its own: ModelCheckpoint's save_last writes only when there is a new best
    last = keep(filename="last", save_on_train_epoch_end=True)
    # the weights before the file, which writes down what it finds
    recorders = [FusionWeights(), MetricsCsv(directory / "metrics.csv")]
    # without validation nothing says which epoch is best
    callbacks: list[Callback] = [*more, *recorders, *([best] if "val" in datasets else []), last]
    if t.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=t.ema_decay))
    if "val" in datasets:
        callbacks.append(Pictures(datasets["val"], t.panel_images))
    on_terminal = sys.stderr.isatty()
    callbacks.append(TQDMProgressBar() if on_terminal else EpochLines(echo))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips and tables; our lines say what happens
    for noise in (
        ".*many workers.*",
        ".*Checkpoint directory .* exists.*",
        ".*LeafSpec.*",
        ".*logging interval.*",
        ".*no `val_data.*",
    ):
        warnings.filterwarnings("ignore", noise)
    trainer = Trainer(
        accelerator=t.accelerator,
        devices=t.devices,
        num_nodes=t.num_nodes,
        precision=t.precision,
        max_epochs=t.epochs,
        accumulate_grad_batches=experiment.optimizer.accumulate,
        gradient_clip_val=experiment.optimizer.gradient_clip or None,
        check_val_every_n_epoch=t.validate_every,
        num_sanity_val_steps=0,
        log_every_n_steps=LOG_EVERY,
        logger=TensorBoardLogger(directory, name="", version="", default_hp_metric=False),
        callbacks=callbacks,
        use_distributed_sampler=False,
        enable_progress_bar=on_terminal,
        enable_model_summary=False,
    )
    return trainer, best


def _log_test(trainer: Trainer, experiment: ExperimentConfig, scores: Scores) -> None:
    """Final figures and curve for TensorBoard, and with the settings its HParams tab, in the run's own directory."""
    if not isinstance(trainer.logger, TensorBoardLogger):
        return
    shown = {
        key: value if isinstance(value, int | float | str | bool) else str(value)
        for key, value in settings(experiment).items()
    }
    test = scores.as_dict()
    figures = {f"test/MR/{name}": value for name, value in test["matlab"].items() if value is not None}
    figures |= {f"test/{name}": value for name, value in test["ap"].items() if value is not None}
    trainer.logger.log_hyperparams({"experiment": experiment.name, **shown}, figures)
    trainer.logger.experiment.add_figure("test/miss_rate_over_fppi", miss_rate_figure({"test": scores}))
    trainer.logger.save()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


def _git_state() -> dict[str, Any]:
    """Commit and whether the tree was changed since; empty outside a repository."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}
