"""Runs the jobs of a study on a Ray cluster.

The nodes share the study's directory, the data and this code under the same paths.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from ssd_effnet.study.execute import POLL, RunOutcome, outcome, work
from ssd_effnet.study.plan import Job
from ssd_effnet.training.run_directory import RunError, State

RETRIES = 3  # of one job whose worker or node dies; it resumes from its last checkpoint
# where SLURM has started Ray, its variables would make Lightning take a run for one of SLURM's processes
ENVIRONMENT = {
    "PYTHONPATH": f"{Path(__file__).resolve().parents[2]}{os.pathsep}${{PYTHONPATH}}",  # before the worker's own
    "SLURM_JOB_NAME": "interactive",
    "SLURM_PROCID": "0",
}


def execute_on_ray(
    todo: Sequence[Job],
    *,
    address: str | None = None,
    on_start: Callable[[Job], None] = lambda job: None,
    on_end: Callable[[RunOutcome], None] = lambda outcome: None,
    on_look: Callable[[Sequence[Job]], None] = lambda running: None,
) -> list[RunOutcome]:
    """Run jobs as Ray tasks, as many as have room. Callbacks are those of :func:`.execute`.

    ``address`` is the cluster's, or ``auto`` for the one that this machine belongs to; None: that one where there is
    one, or else one of this machine alone.

    Raises:
        RunError: no Ray, no cluster, or no node that is large enough.
    """
    try:
        import ray
    except ImportError:
        raise RunError("the executor ray needs Ray: pip install '.[cluster]'") from None
    if not ray.is_initialized():
        stated = os.environ.get("RAY_ADDRESS", "") if address in (None, "auto") else str(address)
        how = " (RAY_ADDRESS; unset it, or say --address)" if stated not in ("", address) else ""
        host, _, port = stated.removeprefix("ray://").rpartition(":")
        try:
            if port.isdecimal():  # Ray itself tries for minutes
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # gRPC's, Ray's and its parsers' have no kind in common
            raise RunError(
                f"no Ray cluster at {stated or address}{how}: {str(error).split(chr(10))[0] or type(error).__name__}"
            ) from error
    needs = [_needs(job, ray.cluster_resources().get("GPU", 0) > 0) for job in todo]
    _refuse_what_fits_no_node(todo, needs, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    # a process does one job only: its words go to the job's log for good
    task = ray.remote(max_calls=1, max_retries=RETRIES)(_task)
    waiting = {
        task.options(**need, runtime_env={"env_vars": ENVIRONMENT}).remote(job, os.getcwd(), int(need["num_cpus"])): job  # noqa: PTH109
        for job, need in zip(todo, needs, strict=True)
    }
    running: list[Job] = []
    outcomes = []
    try:
        while waiting:
            ended, _ = ray.wait(list(waiting), timeout=POLL)
            for job in waiting.values():
                if job not in running and job.directory.state is State.RUNNING:
                    running.append(job)
                    on_start(job)
            on_look(running)
            for reference in ended:
                job = waiting.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = " ".join(str(error).split("\n")[0].split())
                    job.directory.fail(f"its worker died {RETRIES + 1} times: {reason}")
                if job not in running:
                    on_start(job)
                else:
                    running.remove(job)
                outcomes.append(outcome(job))
                on_end(outcomes[-1])
    except KeyboardInterrupt:
        for reference in waiting:
            ray.cancel(reference)  # as Ctrl+C: they end after their step
        ray.wait(list(waiting), num_returns=len(waiting))
        raise
    return outcomes


def _task(job: Job, folder: str, threads: int) -> None:
    """Body of a job's process on its node."""
    os.chdir(folder)  # paths in configs are relative to where the command was given
    work(job, threads)


def _needs(job: Job, gpus: bool) -> dict[str, int]:
    """A job's Ray resources: GPUs with loader processes, or cores."""
    t, workers = job.experiment.trainer, job.experiment.data.workers
    if t.accelerator == "gpu" or (t.accelerator == "auto" and gpus):
        return {"num_gpus": t.devices, "num_cpus": t.devices * (1 + workers)}
    return {"num_gpus": 0, "num_cpus": t.devices * max(t.threads, 1)}


def _refuse_what_fits_no_node(
    todo: Sequence[Job], needs: Sequence[dict[str, int]], nodes: Sequence[dict[str, float]]
) -> None:
    """Refuse jobs larger than any node, for which Ray would wait forever."""
    for job, need in zip(todo, needs, strict=True):
        gpus, cpus = need["num_gpus"], need["num_cpus"]
        if not any(node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= cpus for node in nodes):
            there = "; ".join(f"{node.get('GPU', 0):.0f} GPUs, {node.get('CPU', 0):.0f} CPUs" for node in nodes)
            raise RunError(
                f"{job.name} asks for {gpus} GPUs and {cpus} CPUs on one node (trainer.devices, data.workers, "
                f"trainer.threads), but the nodes have {there}"
            )
