"""Runs the jobs of a study on this machine, in parallel. A failed job does not stop the others."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from data_kaist.errors import Failure
from ssd_effnet.registry import plugins
from ssd_effnet.study.plan import Job
from ssd_effnet.training.environment import cores
from ssd_effnet.training.interruption import SIGNALS
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import Busy, Interrupted, State

POLL = 1.0  # seconds between two looks at the runs
MAIN = Path(__file__).resolve().parents[1] / "__main__.py"


@dataclass(frozen=True)
class RunOutcome:
    """Final state of a job. ``reason`` is one sentence where it is not finished."""

    job: Job
    state: State
    reason: str = ""


def execute(
    todo: Sequence[Job],
    *,
    jobs: int = 1,
    on_start: Callable[[Job], None] = lambda job: None,
    on_end: Callable[[RunOutcome], None] = lambda outcome: None,
    on_look: Callable[[Sequence[Job]], None] = lambda running: None,
) -> list[RunOutcome]:
    """Run ``jobs`` jobs at once, each in its own process. Output goes to ``train.log``.

    Each process sees its share of the GPUs; on a CPU the cores are divided. ``on_look`` is called every second with the
    running jobs. Ctrl+C passes on after all running jobs have stopped, resumable.
    """
    spawn = multiprocessing.get_context("spawn")
    gpus_each = max((job.experiment.trainer.devices for job in todo), default=1)
    waiting = deque(todo)
    running: dict[Job, tuple[BaseProcess, int]] = {}
    slots = list(range(jobs))
    outcomes = []
    try:
        while waiting or running:
            while waiting and slots:
                job, slot = waiting.popleft(), slots.pop(0)
                process: BaseProcess = spawn.Process(target=_work, args=(job, slot, max(cores() // jobs, 1), gpus_each))
                process.start()
                running[job] = process, slot
                on_start(job)
            connection.wait([process.sentinel for process, _ in running.values()], POLL)
            on_look(list(running))
            for job, (process, slot) in list(running.items()):
                if process.exitcode is not None:
                    del running[job]
                    slots.append(slot)
                    if process.exitcode < 0 and -process.exitcode not in SIGNALS:
                        name = signal.Signals(-process.exitcode).name
                        job.directory.fail(f"was ended by {name}; too little memory ends a process like this")
                    outcomes.append(outcome(job))
                    on_end(outcomes[-1])
    except KeyboardInterrupt as stop:
        for process, _ in running.values():  # the terminal's Ctrl+C has reached them too: they end after their step
            if stop.args:  # but SIGTERM may have come to this process alone
                process.terminate()
            process.join()
        raise
    return outcomes


def outcome(job: Job) -> RunOutcome:
    """The outcome of an ended job, from its directory."""
    state = job.directory.state
    reasons = {State.FAILED: job.directory.failure(), State.RUNNING: "another process is at work on it"}
    return RunOutcome(job, state, reasons.get(state, "" if state is State.FINISHED else "was stopped"))


def _work(job: Job, slot: int, threads: int, gpus_each: int) -> None:
    """Body of a job's process on this machine."""
    if gpus := torch.cuda.device_count():
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(slot, gpus, gpus_each)
    work(job, threads)


def work(job: Job, threads: int) -> None:
    """Train a job in this process, resuming from its last checkpoint. ``threads`` are torch's.

    Output goes to ``train.log``, the reason of a failure to ``failure.txt``.
    """
    job.directory.path.mkdir(parents=True, exist_ok=True)
    log = job.directory.log_file.open("a", encoding="utf-8", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} on {platform.node()}, process {os.getpid()}")
    # where a run has several processes, Lightning starts the others by the command of the first
    out = job.directory.path.parents[1]
    sys.argv = [str(MAIN), "train", str(job.directory.config_file), "--out", str(out), "--resume"]
    sys.argv += [word for plugin in plugins for word in ("--plugins", plugin)]
    torch.set_num_threads(threads)
    try:
        run(job.experiment, out, resume=True)
    except Busy:  # the directory is the other process's, its log too
        return
    except Interrupted as error:
        print(f"error: {error}")
        return
    except (Failure, OSError) as error:
        reason = str(error)
    except Exception as error:  # a bug must not end the study; its traceback is in the log
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error} (traceback in {job.directory.log_file})"
    else:
        return
    print(f"error: {reason}")
    job.directory.fail(reason)


def _visible(slot: int, gpus: int, each: int) -> str:
    """GPUs of this slot, among the visible ones."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    return ",".join(dict.fromkeys(allowed[(slot * each + i) % len(allowed)] for i in range(each)))
