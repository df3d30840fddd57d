"""Runs an experiment with a seed: train, resume, test, ``results.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Timer, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from data_kaist.annotations import doubt_of_boxes, other_labels
from data_kaist.classes import Classes, is_among
from data_kaist.corruptions import STRENGTHS
from data_kaist.dataset import DetectionDataset
from data_kaist.detections import write_coco_results, write_images, write_kaist
from data_kaist.errors import DataError, Failure
from data_kaist.layouts import SIDES, category_ids, image_ids
from data_kaist.structures import DetectionTable
from data_kaist.transforms import Compose, Transform
from ssd_effnet import build
from ssd_effnet.build import build_annotations, build_class_loss, build_criterion, build_dataset, build_detector
from ssd_effnet.config.keys import key_types, settings
from ssd_effnet.config.loading import WHERE, elsewhere, experiment_of, save_experiment, varied
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.distributed import sync_batch_norms
from ssd_effnet.evaluation.metrics import metric_of
from ssd_effnet.evaluation.plots import miss_rate_figure
from ssd_effnet.evaluation.scores import Scores, classes_as_dict, named_figures, write_results
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.weights import PREFIX, WeightsError, load_by_name, read_plain, state_dict_of
from ssd_effnet.registry import CORRUPTIONS
from ssd_effnet.training import callbacks as hooks
from ssd_effnet.training import devices, preflight, run_directory
from ssd_effnet.training.checkpoints import WholeCheckpoints
from ssd_effnet.training.interruption import StopOnSignal
from ssd_effnet.training.memory import enough_for_batches
from ssd_effnet.training.module import LOG_EVERY, TrainingModule
from ssd_effnet.training.resume_checks import keep_earlier_results, refuse_other_data, refuse_to_mix, with_its_range
from ssd_effnet.training.run_directory import Interrupted, RunDirectory, RunError, State, checkpoint_file, describe_data
from ssd_effnet.training.runtime import threads_of


def run(
    experiment: ExperimentConfig,
    out: Path,
    *,
    resume: bool = False,
    echo: Callable[[str], None] = print,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train, choose the best epoch, test once; return the content of ``results.json``.

    With several devices each process returns the same; only rank 0 writes and prints.

    Args:
        resume: go on from ``checkpoints/last.ckpt`` (:mod:`.resume_checks`); a finished run is returned as it is.
        echo: called with one line per stage.
        callbacks: further ones of Lightning, such as a search's pruner.
    """
    _quieten_lightning()
    directory = RunDirectory.of(experiment, out)
    processes = devices.Processes.of(experiment)
    if processes.first:
        refuse_to_mix(directory, experiment, resume=resume)
        if directory.begun and (edited := directory.edited(directory.trained())):
            echo(f"{directory.config_file} was edited after the run had begun, and is not believed: {edited}")
    else:

        def echo(line: str) -> None:
            pass

    if resume and directory.results_file.is_file() and directory.trained().trainer.epochs >= experiment.trainer.epochs:
        echo(f"{directory} is finished; nothing to do")
        return directory.results()
    with directory.lock() if processes.first else nullcontext(), threads_of(experiment.trainer.threads):
        if processes.first:
            directory.sweep()
        resumed = resume and directory.last.is_file()
        experiment = with_its_range(directory, experiment) if resumed else experiment
        try:
            return _run(experiment, directory, processes, resumed, echo, callbacks)
        except (Failure, OSError) as error:
            if isinstance(error, OSError) and error.errno and error.filename is None:  # of TensorBoard's writer
                error.filename = str(directory)
            if processes.first and not isinstance(error, Interrupted):
                with suppress(OSError):  # the disk may be full
                    directory.fail(str(error))
            raise


def _quieten_lightning() -> None:
    """Turn off Lightning's own messages."""
    for chatter in ("lightning.pytorch", "lightning.fabric.utilities.distributed"):
        logging.getLogger(chatter).setLevel(logging.WARNING)
    noise = "many workers|Checkpoint directory .* exists|LeafSpec|logging interval|no `val_data|sync_dist=True"
    warnings.filterwarnings("ignore", f".*({noise})")  # sync_dist: all processes log the same


def _run(
    experiment: ExperimentConfig,
    directory: RunDirectory,
    processes: devices.Processes,
    resumed: bool,
    echo: Callable[[str], None],
    callbacks: Sequence[Callback],
) -> dict[str, Any]:
    """The run, from the last checkpoint if ``resumed``."""
    t = experiment.trainer
    gpu = devices.accelerator(experiment) == "cuda"
    seed_everything(t.seed, workers=True, verbose=False)
    experiment = build.with_lwir_range(experiment)
    stages = [stage for stage in ("train", "val", "test") if getattr(experiment.data, stage)]
    datasets = {stage: build_dataset(experiment, stage) for stage in stages}
    for stage, dataset in datasets.items():
        _say_data(experiment, stage, dataset, echo)
    for sentence in _label_doubts(datasets):
        echo(sentence)
    preflight.refuse_to_train_on_nobody(experiment, datasets["train"])
    preflight.refuse_to_watch_nobody(experiment, datasets)
    if resumed:
        refuse_other_data(directory, describe_data(datasets))
    elif not experiment.data.allow_overlap:
        preflight.refuse_shared_images(experiment, datasets)
    begun_from: dict[str, Any] = {}
    detector, report = build_detector(experiment, pretrained=not resumed and not experiment.init_from)
    if report is not None:
        echo(f"pretrained {experiment.backbone.name}: {report}")
        preflight.refuse_empty_statistics(detector, report)
        if (given := experiment.backbone.pretrained) != "imagenet":
            begun_from = _hashed("pretrained", Path(given).expanduser())
    if experiment.init_from:
        begun_from = {} if resumed else _begin_from(experiment, detector, echo)
    preflight.refuse_single_values(detector, experiment, min(t.batch_size, len(datasets["train"])))
    detector = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if processes.count > 1:
        sync_batch_norms(detector, gpu=gpu)
    if t.compile:
        detector.compile()  # in place: the weights keep their names
    if processes.first:
        directory.failure_file.unlink(missing_ok=True)
        if not resumed:
            directory.start_over()
        else:
            keep_earlier_results(directory, experiment, echo)
        save_experiment(experiment, directory.config_file)
        directory.remember(run_directory.describe_environment(datasets, detector, gpu) | begun_from, resumed=resumed)
    session = _Session(experiment, directory, datasets, detector, processes, echo, callbacks, resumed=resumed)
    lost = RunError(
        f"{directory}: one of the run's {processes.count} processes has ended before its time, or the others waited "
        f"for it longer than trainer.process_timeout, {t.process_timeout:g} s (its own words, if it had any, stand "
        f"above); with --resume it resumes from {directory.last}"
    )
    with devices.ending_together(session.trainer, lost):
        session.fit()
        share = session.profiler.share
        advice = "; more data.workers or data.cache would help" if share > 0.05 else ""
        echo(f"{share:.1%} of the training time went by waiting for data{advice}")
        if processes.first and (doubt := session.doubt()):
            echo(doubt)
        return session.finish()


class _Session:
    """A run in progress: trainer, module, loaders by stage, callbacks."""

    def __init__(
        self,
        experiment: ExperimentConfig,
        directory: RunDirectory,
        datasets: dict[str, DetectionDataset],
        detector: Detector,
        processes: devices.Processes,
        echo: Callable[[str], None],
        callbacks: Sequence[Callback],
        *,
        resumed: bool,
    ) -> None:
        t = experiment.trainer
        self.experiment, self.directory, self.datasets, self.resumed = experiment, directory, datasets, resumed
        self.module = _module(experiment, detector, datasets)
        self.loaders = {
            stage: devices.loader(experiment, dataset, stage, processes) for stage, dataset in datasets.items()
        }
        begin: int | None = None
        if resumed:  # Lightning sets the sampler's epoch only after the workers have begun to prefetch
            last = read_plain(directory.last, mapped=True)
            self.loaders["train"].sampler.set_epoch(last["epoch"] + 1)  # type: ignore[attr-defined]
            begin = last["global_step"] + 1
        else:
            preflight.refuse_to_end_warming_up(experiment, len(self.loaders["train"]))
        self.stop = StopOnSignal(first=processes.first)
        self.timer = Timer()  # its state is in the checkpoint: a resumed run adds up the times
        self.profiler = hooks.DataShare()
        self.rows = hooks.MetricsCsv(directory.metrics_file)
        keep = partial(
            hooks.ModelCheckpoint,
            dirpath=directory.last.parent,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        mode = metric_of(t.monitor).mode
        self.best = keep(filename="best", monitor=t.monitor, mode=mode, every_n_epochs=t.validate_every)
        used: list[Callback] = [self.timer, self.stop, *callbacks, hooks.Doubts(datasets, echo), hooks.ScalarLayout()]
        used += [hooks.FusionWeights(), self.rows]  # before the file, which records its metrics
        # without validation no epoch is best. The last one has a callback of its own:
        # ModelCheckpoint's save_last writes only when there is a new best
        used += [*([self.best] if "val" in datasets else []), keep(filename="last")]
        if t.ema_decay:
            used.append(hooks.EMAWeightAveraging(decay=t.ema_decay))
        if "val" in datasets and t.panel_images:
            used.append(hooks.Pictures(datasets["val"], t.panel_images))
        on_terminal = echo is print and sys.stderr.isatty()
        used.append(TQDMProgressBar(refresh_rate=LOG_EVERY) if on_terminal else hooks.EpochLines(echo))
        self.trainer = Trainer(
            **devices.devices(experiment),
            precision=t.precision,
            max_epochs=t.epochs,
            # a step of fewer batches than it is divided by would be a short one
            accumulate_grad_batches=min(experiment.optimizer.accumulate, len(self.loaders["train"])),
            gradient_clip_val=experiment.optimizer.gradient_clip or None,
            check_val_every_n_epoch=t.validate_every,
            num_sanity_val_steps=0,
            log_every_n_steps=LOG_EVERY,
            # drops the events that a killed attempt wrote after its last checkpoint
            logger=TensorBoardLogger(directory.path, name="", version="", default_hp_metric=False, purge_step=begin),
            plugins=[WholeCheckpoints(), *devices.environments()],
            callbacks=used,
            profiler=self.profiler,
            use_distributed_sampler=False,
            enable_progress_bar=on_terminal,
            enable_model_summary=False,
        )

    def fit(self) -> None:
        """All epochs, or those after the last checkpoint."""
        trainer, last = self.trainer, self.directory.last

        def sentence() -> str:
            how = f"resumes from {last}" if last.is_file() else "starts over: no epoch was finished"
            return f"{self.directory}: stopped in epoch {trainer.current_epoch + 1}; with --resume it {how}"

        with self._interruptible(sentence):
            trainer.fit(
                self.module,
                self.loaders["train"],
                self.loaders.get("val"),
                ckpt_path=last if self.resumed else None,
                weights_only=True,
            )

    def validations(self, monitor: str) -> list[float]:
        """Value of the monitor at each validation, by epoch."""
        return [row[monitor] for row in self.rows.rows if monitor in row]

    def doubt(self) -> str:
        """A sentence if the monitor never improved on the first validation. Otherwise it is empty."""
        monitor = self.experiment.trainer.monitor
        metric, values = metric_of(monitor), self.validations(monitor)
        if len(values) < 2 or metric.best(values) != values[0]:
            return ""
        return (
            f"{monitor} was never better than at the first validation, {values[0]:.4g}{metric.unit}; best.ckpt is of "
            f"epoch {_epoch_of(self.directory.best)}, the last that equals it"
        )

    def test(self, checkpoint: Path) -> tuple[DetectionTable, dict[str, Scores]]:
        """Detections and scores of a checkpoint on the test split."""
        with self._interruptible(lambda: f"{checkpoint}: stopped while it was tested; --resume tests it anew"):
            _take_weights(self.module, checkpoint)
            self.trainer.test(self.module, self.loaders["test"], verbose=False)
            return self.module.results["test"]

    @contextmanager
    def _interruptible(self, sentence: Callable[[], str]) -> Iterator[None]:
        """Context that turns errors of the loop into one ``sentence``."""
        try:
            with self.stop.listening(), enough_for_batches(self.experiment):
                yield
        except DataError as error:
            raise _without_traceback(error) from error
        except (KeyboardInterrupt, SystemExit, RuntimeError, OSError) as error:
            # Lightning raises SystemExit on Ctrl+C; SIGTERM may have ended a loader's worker, too
            if isinstance(error, RuntimeError | OSError) and not self.stop.asked:
                if str(error).startswith(devices.DEAD_WORKER):
                    raise RunError(
                        f"a data loader process has died, as it does where memory or /dev/shm runs out ({error}); "
                        f"fewer data.workers need less; {sentence()}"
                    ) from error
                raise
            if not self.trainer.is_global_zero:
                sys.exit(1)
            raise Interrupted(sentence()) from None

    def finish(self) -> dict[str, Any]:
        """Test the chosen checkpoint; write and return the results."""
        t, directory, datasets = self.experiment.trainer, self.directory, self.datasets
        writes = self.trainer.is_global_zero
        chosen = directory.best if t.test_checkpoint == "best" and "val" in datasets else directory.last
        results: dict[str, Any] = {
            "experiment": self.experiment.name,
            "seed": t.seed,
            "checkpoint": chosen.name,
            "epoch": _epoch_of(chosen),
            "epochs": t.epochs,
            "minutes": round(self.timer.time_elapsed() / 60, 2),
            "data_share": round(self.profiler.share, 4),
            "parameters": sum(p.numel() for p in self.module.detector.parameters()),
            "skipped_frames": {stage: d.skipped for stage, d in datasets.items() if d.skipped},
        }
        if self.best.best_model_score is not None:
            first = self.validations(t.monitor)[0]
            results["val"] = {"monitor": t.monitor, "best": float(self.best.best_model_score), "first": first}
            results["val"]["annotations"] = build_annotations(self.experiment, "val")
        if "test" in datasets:
            table, scores = self.test(chosen)
            classes = self.module.classes
            if writes:
                _write_detections(directory, datasets["test"], table)
            results["test"] = _test_results(self.experiment, datasets["test"], scores)
            if writes:
                _log_test(self.trainer, self.experiment, scores, classes)
        if writes:
            write_results(directory.results_file, results)
        return results


TEST_KEYS = tuple(sorted({key for key in key_types() if key.startswith("data.")} - {"data.classes"} | set(WHERE)))
"""Keys that are free where a run is tested again: where its data are and what they are scored by."""


Tests: TypeAlias = dict[tuple[str, int], dict[str, Scores]]
"""Scores by class of each test: ``("clean", 0)``, ``("fog", 1)`` and so on, by kind and strength of the corruption."""
CLEAN = ("clean", 0)


def test_again(
    path: Path, overrides: Sequence[str] = (), name: str = "", *, stress: int | None = None
) -> tuple[Path, Tests]:
    """Test a finished run on other data or under corruptions. Writes ``tests/<name>/`` in the run.

    Args:
        path: the run directory or its tested checkpoint.
        overrides: ``key=value`` of :data:`TEST_KEYS`: another split, annotation set or data set.
        name: of the folder; empty: made of the overrides.
        stress: seed of :data:`data_kaist.corruptions.CORRUPTIONS`, each of which is tested too; None: none is.

    Returns:
        The folder, and the scores by class of each test.
    """
    _quieten_lightning()
    directory, checkpoint = RunDirectory.holding(path), checkpoint_file(path)
    if directory.state is not State.FINISHED:
        raise RunError(f"{directory}: is not finished; ssd-effnet train --resume goes on with it")
    results = directory.results()
    if checkpoint.name != results["checkpoint"]:
        raise RunError(f"{checkpoint}: is not the tested checkpoint of {directory}, {results['checkpoint']}")
    experiment = elsewhere(directory.trained(), overrides, TEST_KEYS)
    if not any(override.partition("=")[0].strip() == "data.root" for override in overrides):
        experiment = directory.at_hand(experiment)
    experiment.trainer.devices = experiment.trainer.num_nodes = 1
    if not experiment.data.test:
        raise RunError(f"{directory}: was trained without a test split; say data.test=...")
    said = sorted([*overrides, *([] if stress is None else [f"stress={stress}"])])
    beside = RunDirectory(directory.path / "tests" / (name or _test_name(said)))
    if beside.results_file.is_file() and (other := beside.results().get("settings")) != said:
        raise RunError(f"{beside}: holds a test with other settings, {' '.join(other or ())}; give another --name")
    dataset = build_dataset(experiment, "test")
    _say_data(experiment, "test", dataset, print)
    module = _module(experiment, build_detector(experiment, pretrained=False)[0], {"test": dataset})
    _take_weights(module, checkpoint)  # once: a run that goes on replaces its checkpoints
    trainer = Trainer(
        **devices.devices(experiment),
        precision=experiment.trainer.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    transforms = {CLEAN: dataset.transform} | ({} if stress is None else _under_stress(dataset, stress))
    tests: Tests = {}
    try:
        for (kind, strength), dataset.transform in transforms.items():
            batches = devices.loader(experiment, dataset, "test", devices.Processes())
            trainer.test(module, batches, verbose=False)
            table, tests[kind, strength] = module.results["test"]
            if kind == CLEAN[0]:
                _write_detections(beside, dataset, table)
            else:
                mr = tests[kind, strength][dataset.classes.main].percent("matlab")["reasonable_all"]
                print(f"{kind}, strength {strength}: MR {mr:.2f}")
    except DataError as error:
        raise _without_traceback(error) from error
    except SystemExit:  # Lightning's answer to Ctrl+C
        raise Interrupted(f"{beside}: stopped while it was tested") from None
    kept = {key: results[key] for key in ("experiment", "seed", "checkpoint", "epoch")}
    data = describe_data({"test": dataset})["test"] | {"skipped_frames": dataset.skipped}
    tested: dict[str, Any] = {"test": _test_results(experiment, dataset, tests[CLEAN])}
    if stress is not None:
        tested["stress"] = {f"{kind} {s}": classes_as_dict(tests[kind, s], dataset.classes) for kind, s in tests if s}
        _log_stress(beside.path, tests, dataset.classes)
    write_results(beside.results_file, {**kept, "settings": said, "data": data, **tested})
    return beside.path, tests


def _under_stress(dataset: DetectionDataset, seed: int) -> dict[tuple[str, int], Transform]:
    """The data set's transforms after each corruption, by kind and strength.

    Left out are those of a camera that is not read, and with one camera its shift: nothing is out of place then.
    """
    dataset.seed = seed
    if still := sum(dataset.earlier(i, 1) == i for i in range(len(dataset))):
        print(f"frozen: {still:,} of {len(dataset):,} frames are the first of their video and stay as they are")
    unread = tuple(f"_{side}" for side in SIDES["early"] if side not in SIDES[dataset.modality])
    return {
        (kind, strength): Compose((partial(CORRUPTIONS[kind], strength=strength), dataset.transform))
        for kind in CORRUPTIONS
        if not (unread and (kind.endswith(unread) or kind.startswith("shift_")))
        for strength in STRENGTHS
    }


def _log_stress(folder: Path, tests: Tests, classes: Classes) -> None:
    """Log miss rates by corruption to TensorBoard, over the strength. Strength 0 is without it."""
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    kinds = dict.fromkeys(kind for kind, strength in tests if strength)
    with SummaryWriter(str(folder)) as writer:
        for (kind, strength), scores in tests.items():
            for name, value in named_figures(scores, classes):
                for of in [kind] if strength else kinds:
                    if name.startswith("MR/reasonable") and not math.isnan(value):
                        writer.add_scalar(f"stress/{of}/{name}", value, strength)


def _test_name(overrides: Sequence[str]) -> str:
    """Folder name of a test, from its overrides: ``test=test-day-20,root=LLVIP``."""
    named = [(key.rpartition(".")[2], Path(value).name) for key, _, value in (o.partition("=") for o in overrides)]
    return re.sub(r"[^\w.,=%+-]+", "_", ",".join(map("=".join, sorted(named)))) or "same"


def _take_weights(module: TrainingModule, checkpoint: Path) -> None:
    """Load the weights that were validated; Lightning would take the raw ones, not their moving average."""
    module.load_state_dict(read_plain(checkpoint, mapped=True)["state_dict"])


def _test_results(experiment: ExperimentConfig, dataset: DetectionDataset, scores: dict[str, Scores]) -> dict[str, Any]:
    """Entry ``test`` of a results file: data and figures."""
    counted = {"split": experiment.data.test, "annotations": build_annotations(experiment, "test")}
    return {**counted, "images": len(dataset), **classes_as_dict(scores, dataset.classes)}


def _module(
    experiment: ExperimentConfig, detector: Detector, datasets: Mapping[str, DetectionDataset]
) -> TrainingModule:
    return TrainingModule(
        detector,
        build_criterion(experiment),
        build.build_postprocess(experiment),
        lambda model, steps: _optimizers(experiment, model, steps),
        {stage: dataset.annotations for stage, dataset in datasets.items()},
        dataclasses.asdict(experiment),
        next(iter(datasets.values())).classes,
    )


def _say_data(experiment: ExperimentConfig, stage: str, dataset: DetectionDataset, echo: Callable[[str], None]) -> None:
    """Print a stage's data and doubts about them."""
    split = getattr(experiment.data, stage)
    echo(f"{stage}, {split}: {dataset}; annotations: {build_annotations(experiment, stage)}")
    if dataset.skipped:
        echo(f"{stage}: {len(dataset.skipped):,} bad frames are left out; environment.json lists them")
    if others := other_labels(dataset.annotations, dataset.classes):
        echo(f"{stage}: not {' or '.join(dataset.classes.names)}, so ignore regions: {others}")
    if doubt := doubt_of_boxes(dataset.annotations, experiment.data.min_height, dataset.classes):
        echo(f"warning: {stage}: {doubt}")
    if dataset.cache is not None:
        echo(f"{stage}: decoded frames are kept and {dataset.cache}")


def _begin_from(experiment: ExperimentConfig, detector: Detector, echo: Callable[[str], None]) -> dict[str, Any]:
    """Load the weights of ``init_from`` by name, without the normalisation. Returns the file and its SHA-256."""
    given = Path(experiment.init_from).expanduser()
    try:
        file = checkpoint_file(given)
        content = read_plain(file)
        of_file = state_dict_of(content, file)
        inside = PREFIX if any(name.startswith(PREFIX) for name in of_file) else ""
        named = {name.removeprefix(inside): of_file[name] for name in of_file if name.startswith(inside)}
        own = ("normalize.", "head.classification.") if _other_classes(content, file, experiment) else ("normalize.",)
        report = load_by_name(detector, {n: named[n] for n in named if not n.startswith(own)}, source=str(file))
    except WeightsError as error:
        raise WeightsError(f"key `init_from`: {error}") from error
    report = replace(report, missing=tuple(name for name in report.missing if not name.startswith("normalize.")))
    preflight.refuse_empty_statistics(detector, report)
    if given.is_dir() and not RunDirectory(given).results_file.is_file():
        echo(f"init_from: {given} is not finished, so these are no tested weights but its best ones so far")
    echo(f"init_from: {report}; what is not loaded starts at random; the normalisation is this experiment's own")
    return _hashed("init_from", file)


def _other_classes(content: dict[str, Any], file: Path, experiment: ExperimentConfig) -> bool:
    """Whether class logits of a checkpoint mean something else: other classes, another order, another activation."""
    if not isinstance(of_file := content.get("experiment"), dict):
        return False
    both = (experiment_of(of_file, str(file)), experiment)
    before, now = ((build_class_loss(e).activation, [*e.data.classes]) for e in both)
    return before != now


def _hashed(key: str, file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        return {key: {"file": str(file), "sha256": hashlib.file_digest(content, "sha256").hexdigest()}}


def _write_detections(directory: RunDirectory, dataset: DetectionDataset, table: DetectionTable) -> None:
    frames = dataset.frames
    ids, categories = image_ids(frames), category_ids(frames, dataset.classes)
    write_coco_results(directory.detections_file, table, image_ids=ids, category_ids=categories)
    names, sizes = [f"{frame.name}.jpg" for frame in frames], [frame.annotations.size for frame in frames]
    of_ids = dict(zip(categories, dataset.classes.published, strict=True))
    write_images(directory.detections_file.with_name("images.json"), ids, names, sizes, of_ids)
    people = table.of_class(dataset.classes.index(dataset.classes.main))
    write_kaist(directory.kaist_file, replace(people, image_index=np.array(ids)[people.image_index]))


def _epoch_of(checkpoint: Path) -> int:
    """Epoch after which a checkpoint was written, from 1."""
    return int(read_plain(checkpoint, mapped=True)["epoch"]) + 1


def _without_traceback(error: DataError) -> DataError:
    """The error's sentence, without the traceback that a loader's worker adds."""
    kind = type(error)
    return kind(str(error.args[0]).strip().rpartition("\n")[2].removeprefix(f"{kind.__module__}.{kind.__qualname__}: "))


def _optimizers(experiment: ExperimentConfig, model: nn.Module, steps: int) -> dict[str, Any]:
    optimizer = build.build_optimizer(experiment, model)
    schedule = build.build_schedule(experiment, optimizer, steps)
    plateau = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
    step: dict[str, Any] = {"scheduler": schedule, "interval": "epoch" if plateau else "step"}
    if plateau:
        watched = getattr(experiment.schedule, "monitor", experiment.trainer.monitor)
        step |= {"monitor": watched, "frequency": experiment.trainer.validate_every}
    return {"optimizer": optimizer, "lr_scheduler": step}


def _label_doubts(datasets: Mapping[str, DetectionDataset]) -> Iterator[str]:
    """Sentences on labels of ``data.classes`` without boxes or without scores."""
    classes = datasets["train"].classes
    there = {label for of_frame in datasets["train"].annotations for label in of_frame.labels}
    if lacking := [label for label in classes.all_labels if not is_among([label], there).any()]:
        yield f"train: no box is labelled {' or '.join(lacking)} (data.classes); there are {', '.join(sorted(there))}"
    for name in classes.names:
        if ignored := classes.ignored_in_scoring(name):
            yield (
                f"val, test: {name} is scored by the label {' and '.join(classes.counted(name))} alone, as KAIST's "
                f"protocol has it; {' and '.join(ignored)}, learned as {name} too, are ignore regions there"
            )


def _log_test(trainer: Trainer, experiment: ExperimentConfig, scores: Mapping[str, Scores], classes: Classes) -> None:
    """Log the final figures, the curve and HParams to TensorBoard."""
    if not isinstance(trainer.logger, TensorBoardLogger):
        return
    values, shown = settings(experiment), varied([ExperimentConfig(), experiment])
    hparams = {key: values[key] if isinstance(values[key], int | float | str) else str(values[key]) for key in shown}
    figures = {f"test/{name}": value for name, value in named_figures(scores, classes) if not math.isnan(value)}
    curves = scores if len(scores) > 1 else {"test": scores[classes.main]}
    # with these names, they are the first columns
    trainer.logger.log_hyperparams({"Experiment": experiment.name, "Seed": experiment.trainer.seed, **hparams}, figures)
    trainer.logger.experiment.add_text("test/annotations", build_annotations(experiment, "test"))
    if experiment.trainer.panel_images:
        trainer.logger.experiment.add_figure("test/miss_rate_over_fppi", miss_rate_figure(curves))
    trainer.logger.save()
