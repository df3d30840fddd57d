"""Other processes, forked, so that a test of them takes no longer than what they do."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import Any

import torch
from torch import distributed


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
