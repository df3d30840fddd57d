"""Other processes, forked, so that a test of them takes no longer than what they do."""

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ssd_effnet.training.run_directory import RunDirectory

ROOT = Path(__file__).parents[1]
# of a start of the project's scripts: no process of a test is one of several
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
ENVIRONMENT |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def script(name: str, *words: object) -> list[str]:
    """The words of a command line that starts one of the project's scripts."""
    return [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, words)]


@contextmanager
def started(command: list[str], run: Path) -> Iterator[subprocess.Popen[str]]:
    """A command as a user starts it, in a session of its own, from when a run has done two epochs."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, start_new_session=True, env=ENVIRONMENT, **pipes) as process:
        while RunDirectory(run).epochs_done() < 2:
            time.sleep(0.1)
            assert process.poll() is None
        yield process


def _work(rank: int, count: int, port: int, path: str, work: Callable[[], Any]) -> None:
    # what torchrun would set
    places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "a test"}
    torch.save(work(), path)
    if distributed.is_initialized():
        distributed.barrier()  # the first one serves the others
        distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def in_the_background(work: Callable[[Event], None]) -> Iterator[None]:
    """``work`` goes on in a process of its own, from where it has set its event; killed in the end."""
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    process = fork.Process(target=work, args=(begun,), daemon=True)
    process.start()
    try:
        assert begun.wait(60)
        yield
    finally:
        process.kill()
        process.join()


def in_processes(count: int, path: Any, work: Callable[[], Any]) -> list[Any]:
    """What ``work`` returns in each of so many processes; ``path`` is a folder to hand it over in."""
    port = free_port()
    fork = multiprocessing.get_context("fork")
    files = [f"{path}/{rank}.pt" for rank in range(count)]
    processes = [fork.Process(target=_work, args=(i, count, port, files[i], work)) for i in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * count
    return [torch.load(file, weights_only=False) for file in files]
