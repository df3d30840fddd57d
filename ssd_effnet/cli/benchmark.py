"""Measure speed on this machine.

examples:
  ssd-effnet benchmark all --json figures.json                           every stage, on the CPU
  ssd-effnet benchmark forward --threads 2                               three networks, on two threads
  ssd-effnet benchmark gpu --json                                        images per second, six experiments, on a GPU
  ssd-effnet benchmark gpu --device cpu --experiments lite0 00_vgg16     the same on the CPU
  ssd-effnet benchmark gpu --device cpu --tiny                           whether that would run, without a GPU
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell

STAGES = {
    "data": "training pair and test pair, from files and from memory",
    "loss": "MultiBox, forward and backward",
    "forward": "VGG16-BN, EfficientNet-B4 and lite0, in NCHW and folded in channels_last",
}


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet benchmark")
    what = parser.add_subparsers(required=True, metavar="what")
    for name, text in (*STAGES.items(), ("all", "all of these")):
        stage = what.add_parser(name, help=text)
        stage.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
        stage.add_argument("--runs", type=shell.positive, default=5, help="rounds that are timed (default: 5)")
        stage.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
        stage.add_argument("--size", type=shell.size, metavar="HxW", help="default: as published")
        stage.set_defaults(run=run_stages, stages=tuple(STAGES) if name == "all" else (name,), device="cpu")
    gpu = what.add_parser("gpu", help="training and inference of six experiments, in images per second, on one device")
    gpu.add_argument("--device", default="cuda", help="default: cuda")
    gpu.add_argument("--experiments", nargs="+", metavar="FILE", help="default: six of them")
    gpu.add_argument("--size", type=shell.size, nargs="+", metavar="HxW", help="default: 300x300 512x640")
    gpu.add_argument("--steps", type=shell.positive, default=30, help="that are timed of each way (default: 30)")
    gpu.add_argument("--workers", type=int, default=8, help="of the loader (default: 8)")
    gpu.add_argument("--tiny", action="store_true", help="lite0 at 64x96, one step: whether it runs, also on a CPU")
    to = "write all figures there, and a page beside it (default: a dated file in experiments/results/devices)"
    gpu.add_argument("--json", type=Path, nargs="?", const=Path(), metavar="OUT", help=to)
    gpu.set_defaults(run=run_gpu)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().completed().parse_args(argv)
    from ssd_effnet.training.environment import usable_device

    usable_device(arguments.device)
    arguments.run(arguments)


def run_stages(a: argparse.Namespace) -> None:
    import torch
    from rich.table import Table

    from ssd_effnet.benchmark.stages import Row, measure
    from ssd_effnet.evaluation.scores import write_results
    from ssd_effnet.training.environment import machine_line
    from ssd_effnet.training.runtime import threads_of

    rows: list[Row] = []
    with threads_of(a.threads), tempfile.TemporaryDirectory() as folder:
        for stage in a.stages:
            for row in measure(stage, Path(folder), a.size, a.runs):
                rows.append(row)
                print(f"{row.stage}: {row.case}: {row.ms:.3g} ms", file=sys.stderr)
        clock = "processor time" if torch.get_num_threads() == 1 else "wall time"
        machine = machine_line("cpu", a.threads, f"{clock}, medians of {a.runs} rounds in turns")
    table = Table(title="stages", caption=machine)
    for name in ("stage", "case", "ms", "times as fast as the first of its kind"):
        table.add_column(name, justify="left" if name in ("stage", "case") else "right")
    for row in rows:
        table.add_row(row.stage, row.case, f"{row.ms:.3g}", f"{row.times_faster:.3g}")
    shell.print_table(table)
    if a.json:
        write_results(a.json, {"machine": machine, "rows": [row._asdict() for row in rows]})


def run_gpu(a: argparse.Namespace) -> None:
    from ssd_effnet.benchmark.gpu import EXPERIMENTS, SIZES, Speed, Trial, benchmark_gpu, write_speeds
    from ssd_effnet.training.environment import machine_line, usable_device

    device = usable_device(a.device)
    trial = Trial(device, steps=a.steps, workers=a.workers)
    names: Sequence[str] = a.experiments or EXPERIMENTS
    sizes: Sequence[tuple[int, int]] = a.size or SIZES
    if a.tiny:
        if a.experiments or a.size:
            parser().error("--tiny takes lite0 at 64x96 and no --experiments or --size")
        trial = Trial(device, 1, batch=2, inference=(1, 2), loaded=(2,), frames=8, workers=0, compiled=False)
        names, sizes = ("lite0",), ((64, 96),)
    machine = machine_line(str(device), 0, f"{trial.steps} steps of {trial.batch} images, of larger batches 3 or more")
    out = a.json
    if out == Path():
        name = re.sub(r"\W+", "_", machine.partition(",")[0]).lower()
        out = Path("experiments/results/devices") / f"{name}_{time.strftime('%Y-%m-%d_%H%M')}.json"
    speeds: list[Speed] = []
    with tempfile.TemporaryDirectory() as folder:
        for speed in benchmark_gpu(Path(folder), trial, names, sizes):
            speeds.append(speed)
            size = f"{speed.size[0]}x{speed.size[1]}"
            where = f"{speed.experiment} {size}, {speed.what}, {speed.precision}, batch {speed.batch}"
            print(f"{where}: {speed.images_per_second:.4g} images/s", flush=True)
            if out is not None:
                write_speeds(out, speeds, machine)  # what is measured stays if the rest is stopped
    if out is not None:
        print(f"written to {out}")
