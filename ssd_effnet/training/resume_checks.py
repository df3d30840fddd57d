"""Checks before a run resumes: whether it may go on, and with what.

:func:`.run.run` gives ``checkpoints/last.ckpt`` to Lightning, which restores weights, optimiser, schedule, counters and
the states of the callbacks.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.registry import SCHEDULES
from ssd_effnet.training.run_directory import RunDirectory, RunError, changes


def refuse_to_mix(directory: RunDirectory, experiment: ExperimentConfig, *, resume: bool) -> None:
    """Refuse a directory whose run this one does not continue.

    Raises:
        RunError: a run is there and ``resume`` is false, or its config differs, or more epochs cannot be had.
    """
    if not directory.begun:
        return
    if not resume:
        raise RunError(f"{directory}: holds a run already; add --resume to go on with it, or choose another --out")
    epochs, more = directory.refuse_a_copy().trainer.epochs, experiment.trainer.epochs
    refuse_another_config(directory, experiment, epochs=max(epochs, more))
    schedule = experiment.schedule.name
    if more > epochs and SCHEDULES.takes(schedule, "steps"):
        raise RunError(
            f"{directory}: cannot go on from {epochs} to {more} epochs: the schedule {schedule} is laid out over all "
            f"epochs of a run, and over {more} those that are done would have had other rates (constant and "
            f"plateau go on); begin another run from its weights, {shlex.quote(f'init_from={directory}')} under "
            "another name or --out"
        )
    if more > epochs and not directory.last.is_file():
        raise RunError(f"{directory}: cannot go on to {more} epochs: {directory.last} is not there")


def refuse_another_config(directory: RunDirectory, experiment: ExperimentConfig, *, epochs: int | None = None) -> None:
    """Refuse a config that differs in more than location. ``epochs`` is the new number of epochs."""
    begun, experiment = directory.trained(), with_its_range(directory, experiment)
    edited = f" ({directory.config_file.name} was edited since)" if directory.edited(begun) else ""
    begun.trainer.epochs = epochs or begun.trainer.epochs
    if differ := changes(begun, experiment):
        raise RunError(
            f"{directory}: was started with another config{edited}; these differ: {', '.join(differ)}; "
            "choose another --out"
        )


def with_its_range(directory: RunDirectory, experiment: ExperimentConfig) -> ExperimentConfig:
    """The experiment with the LWIR range that the run measured."""
    data = experiment.data
    if data.lwir_quantiles is None or data.lwir_range:
        return experiment
    begun = directory.trained().data
    if data.lwir_quantiles != begun.lwir_quantiles:
        return experiment
    return replace(experiment, data=replace(data, lwir_range=begun.lwir_range))


def refuse_other_data(directory: RunDirectory, data: Mapping[str, Any]) -> None:
    """Refuse data that differ from those at the start. As :func:`.describe_data` gives them."""
    if not directory.environment_file.is_file():
        return
    begun_with = directory.environment().get("data", {})
    if changed := [stage for stage in begun_with if data.get(stage) != begun_with[stage]]:
        raise RunError(
            f"{directory}: its data have changed since it was started ({', '.join(changed)}); bring them back, or "
            "choose another --out"
        )


def keep_earlier_results(directory: RunDirectory, experiment: ExperimentConfig, echo: Callable[[str], None]) -> None:
    """Rename the results and detections of a run that is given more epochs."""
    epochs, t = directory.trained().trainer.epochs, experiment.trainer
    if epochs >= t.epochs:
        return
    echo(f"{directory}: goes on after {epochs} epochs to {t.epochs} with the schedule {experiment.schedule.name}")
    for file in (directory.results_file, directory.detections_file, directory.kaist_file):
        if file.is_file():
            kept = file.rename(file.with_stem(f"{file.stem}_{epochs}_epochs"))
            echo(f"what it had come to stays in {kept}")
