"""Runs the jobs of a study, several at a time, past those that fail."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess

import torch

from data_kaist.errors import DataError
from ssd_effnet.machine import cores
from ssd_effnet.run import run
from ssd_effnet.run_directory import Busy, Interrupted, RunError, State
from ssd_effnet.study.plan import Job
from ssd_effnet.training import NonFiniteLossError
from ssd_effnet.weights import WeightsError
from ssd_effnet.yaml_files import ConfigError

POLL = 1.0  # seconds between two looks at the runs


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: which.
        state: of its directory at the end.
        reason: one sentence where it is not finished.
    """

    job: Job
    state: State
    reason: str = ""


def execute(
    todo: Sequence[Job],
    *,
    jobs: int = 1,
    on_start: Callable[[Job], None] = lambda job: None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
    on_look: Callable[[Sequence[Job]], None] = lambda running: None,
) -> list[Outcome]:
    """Run jobs, so many at a time, each in a process of its own whose words go to the run's ``train.log``.

    On a machine with GPUs each process sees one of them, in turn; on a CPU the cores are divided.

    Args:
        todo: in this order.
        jobs: how many at a time.
        on_start, on_end: told of each job.
        on_look: told every second which jobs are running.

    Raises:
        KeyboardInterrupt: after all running jobs have stopped, resumable.
    """
    spawn = multiprocessing.get_context("spawn")
    waiting = deque(todo)
    running: dict[Job, tuple[BaseProcess, int]] = {}
    slots = list(range(jobs))
    outcomes = []
    try:
        while waiting or running:
            while waiting and slots:
                job, slot = waiting.popleft(), slots.pop(0)
                process: BaseProcess = spawn.Process(target=_work, args=(job, slot, max(cores() // jobs, 1)))
                process.start()
                running[job] = process, slot
                on_start(job)
            connection.wait([process.sentinel for process, _ in running.values()], POLL)
            on_look(list(running))
            for job, (process, slot) in list(running.items()):
                if process.exitcode is not None:
                    del running[job]
                    slots.append(slot)
                    outcomes.append(_outcome(job, process.exitcode))
                    on_end(outcomes[-1])
    except KeyboardInterrupt:
        for process, _ in running.values():  # the terminal's Ctrl+C has reached them too: they end after their step
            process.join()
        raise
    return outcomes


def _outcome(job: Job, exitcode: int) -> Outcome:
    if exitcode < 0:
        job.directory.fail(f"was ended by {signal.Signals(-exitcode).name}; too little memory ends a process like this")
    state = job.directory.state
    reasons = {State.FAILED: job.directory.failure(), State.RUNNING: "another process is at work on it"}
    return Outcome(job, state, reasons.get(state, "" if state is State.FINISHED else "was stopped"))


def _work(job: Job, slot: int, threads: int) -> None:
    """Body of a job's process."""
    job.directory.path.mkdir(parents=True, exist_ok=True)
    log = job.directory.log_file.open("a", encoding="utf-8", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    gpus = torch.cuda.device_count()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(slot, gpus)
    torch.set_num_threads(threads)
    try:
        run(job.experiment, job.directory.path.parents[1], resume=True, shown=job.varied)
    except Busy:  # the directory is the other process's, its log too
        return
    except Interrupted as error:
        print(f"error: {error}")
        return
    except (ConfigError, DataError, RunError, WeightsError, NonFiniteLossError, OSError) as error:
        reason = str(error)
    except Exception as error:  # a bug must not end the study; its traceback is in the log
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error} (traceback in {job.directory.log_file})"
    else:
        return
    print(f"error: {reason}")
    job.directory.fail(reason)
    sys.exit(1)


def _visible(slot: int, gpus: int) -> str:
    """The one GPU of this slot, among those that the user lets this study see."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    return allowed[slot % len(allowed)]
