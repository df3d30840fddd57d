"""Measure speed and memory on this machine.

examples:
  ssd-effnet benchmark models                                            the study's experiments and EfficientDet-D0
  ssd-effnet benchmark models --size 512x640 --runs 9 --threads 2
  ssd-effnet benchmark models --experiments 00_vgg16 05_deconv
  ssd-effnet benchmark models --size own --device cuda
  ssd-effnet benchmark models input.modality=halfway trainer.precision=bf16-mixed --experiments 04_fpn 08_bifpn
  ssd-effnet benchmark models --training --size own --experiments 03_resolution
  ssd-effnet benchmark all --json figures.json                           every stage
  ssd-effnet benchmark data --root data/kaist --runs 9                   your own files, not synthetic ones
  ssd-effnet benchmark export --threads 2                                onnxruntime against torch
  ssd-effnet benchmark train --device cuda --batch 16 --compile
  ssd-effnet benchmark gpu --json                                        images per second, six experiments, on a GPU
  ssd-effnet benchmark gpu --device cpu --tiny                           whether that would run, without a GPU
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell

STAGES = {
    "data": "training pair, test pair, from files and from memory",
    "loss": "MultiBox, forward and backward; against a loop over images",
    "postprocess": "decoding and NMS; against a loop over boxes",
    "whole": "training step and inference of lite0 and 00_vgg16; against the same with loops for the loss and NMS",
    "forward": "VGG16-BN, EfficientNet-B4, lite0, alone and from JPEG to detections; against NCHW without folding",
    "export": "an ONNX file of lite0 in onnxruntime; against the detector in torch",
    "train": "a training step of EfficientNet-B4; against the same in NCHW with the plain loss",
}


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet benchmark")
    what = parser.add_subparsers(required=True, metavar="what")
    models = what.add_parser("models", help="parameters, multiply-adds, milliseconds and memory of each experiment")
    models.add_argument("--experiments", type=Path, nargs="+", metavar="FILE", help="default: 00 ... 12 and D0")
    models.add_argument("--training", action="store_true", help="time forward + loss + backward, not the forward pass")
    models.add_overrides("settings of all of them: input.modality=halfway, trainer.precision=bf16-mixed")
    add_common(models, threads=0, size=(512, 640))
    models.set_defaults(run=run_models)
    for name, text in (*STAGES.items(), ("all", "all of these")):
        stage = what.add_parser(name, help=text)
        stage.add_argument("--batch", type=int, default=2, help="images of a training step (default: 2)")
        stage.add_argument("--compile", action="store_true", help="measure torch.compile of a training step too")
        stage.add_argument("--root", type=Path, help="a data set in KAIST's layout (default: synthetic pairs)")
        stage.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
        add_common(stage, threads=1, size=None)
        stage.set_defaults(run=run_stages, stages=tuple(STAGES) if name == "all" else (name,))
    gpu = what.add_parser("gpu", help="training and inference of six experiments, in images per second, on one device")
    gpu.add_argument("--device", default="cuda", help="default: cuda")
    gpu.add_argument("--experiments", nargs="+", metavar="FILE", help="default: six of them")
    gpu.add_argument("--size", type=shell.size, nargs="+", metavar="HxW", help="default: 300x300 512x640")
    gpu.add_argument("--steps", type=int, default=30, help="that are timed of each way (default: 30)")
    gpu.add_argument("--workers", type=int, default=8, help="of the loader (default: 8)")
    gpu.add_argument("--tiny", action="store_true", help="lite0 at 64x96, one step: whether it runs, also on a CPU")
    gpu.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=Path(),
        metavar="OUT",
        help="write all figures there, and a page beside it (default: a dated file in experiments/results/devices)",
    )
    gpu.set_defaults(run=run_gpu)
    return parser


def add_common(parser: shell.Parser, threads: int, size: tuple[int, int] | None) -> None:
    """Options of ``models`` and of the stages, with these defaults."""
    add = parser.add_argument
    add("--runs", type=int, default=5, help="passes or rounds that are timed (default: 5)")
    add("--threads", type=int, default=threads, help="of torch (default: models 0, its own choice; stages 1)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of models, forward and train")
    add("--size", type=size_or_own, default=size, metavar="HxW", help="or `own` (default: models 512x640, stages own)")


@shell.command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_overrides(argv)
    if arguments.overrides and arguments.run is not run_models:
        parser().error(f"unknown arguments: {' '.join(arguments.overrides)}")
    from ssd_effnet.training.machine import usable_device

    usable_device(arguments.device)
    arguments.run(arguments)
    return 0


def run_models(arguments: argparse.Namespace) -> None:
    """One experiment after the other, each in a process of its own, so that memory figures do not mix."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from ssd_effnet.benchmark.models import measure_model, models_table
    from ssd_effnet.config.loading import EXPERIMENTS, load_experiment
    from ssd_effnet.registry import load_plugins, plugins
    from ssd_effnet.training.machine import machine_line

    numbered = sorted(EXPERIMENTS.glob("[01][0-9]*.yaml"))
    files, behind = shell.without_settings(arguments.experiments or [])
    files, overrides = files or [*numbered, Path("efficientdet_d0")], [*arguments.overrides, *behind]
    for file in files:
        load_experiment(file, overrides)  # what is wrong is said before the first one is measured
    settings = {name: getattr(arguments, name) for name in ("size", "runs", "threads", "device", "training")}
    figures = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, load_plugins, (list(plugins),), max_tasks_per_child=1) as pool:
        for file in files:
            figures.append(pool.submit(measure_model, file, overrides, **settings).result())
            print(f"{figures[-1].name}: {figures[-1].median_ms:.0f} ms", file=sys.stderr)
    passes = "forward + loss + backward" if arguments.training else "forward in evaluation"
    machine = machine_line(arguments.device, arguments.threads, f"batch 1, {passes}, channels_last")
    shell.print_table(models_table(figures, machine))


def run_stages(a: argparse.Namespace) -> None:
    import torch
    from rich.table import Table

    from ssd_effnet.benchmark.stages import STAGES, Row, Settings
    from ssd_effnet.training.machine import machine_line
    from ssd_effnet.training.runtime import threads_of

    rows: list[Row] = []
    with threads_of(a.threads), tempfile.TemporaryDirectory() as folder:
        for stage in a.stages:
            root = a.root if stage == "data" and a.root else Path(folder)
            for row in STAGES[stage](Settings(root, a.runs, a.device, a.size, a.batch, a.compile)):
                rows.append(row)
                print(f"{row.stage}: {row.case}: {row.own_ms:.3g} ms", file=sys.stderr)
        clock = "processor time" if torch.get_num_threads() == 1 and a.device == "cpu" else "wall time"
        how = f"{clock}, {a.runs} rounds in turns, medians; results agreed with the reference before"
        machine = machine_line(a.device, a.threads, how)
    table = Table(title="each stage against the plain way of doing it", caption=machine)
    for name in ("stage", "case", "reference ms", "own ms", "ratio", "goal"):
        table.add_column(name, justify="left" if name in ("stage", "case") else "right")
    for row in rows:
        figures = (row.reference_ms, row.own_ms, row.ratio, row.goal)
        table.add_row(row.stage, row.case, *("" if value is None else f"{value:.3g}" for value in figures))
    shell.print_table(table)
    if a.json:
        content = {"machine": machine, "rows": [vars(row) for row in rows]}
        a.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def run_gpu(arguments: argparse.Namespace) -> None:
    import re
    import time

    from ssd_effnet.benchmark.gpu import EXPERIMENTS, SIZES, Speed, Trial, benchmark_gpu, write_speeds
    from ssd_effnet.training.machine import machine_line, usable_device

    device = usable_device(arguments.device)
    trial = Trial(device, steps=arguments.steps, workers=arguments.workers)
    names: Sequence[str] = arguments.experiments or EXPERIMENTS
    sizes: Sequence[tuple[int, int]] = arguments.size or SIZES
    if arguments.tiny:
        trial = Trial(device, 1, batch=2, inference=(1, 2), loaded=(2,), frames=8, workers=0, compiled=False)
        names, sizes = ("lite0",), ((64, 96),)
    machine = machine_line(device.type, 0, f"{trial.steps} steps each")
    out = arguments.json
    if out == Path():
        name = re.sub(r"\W+", "_", machine.partition(",")[0]).lower()
        out = Path("experiments/results/devices") / f"{name}_{time.strftime('%Y-%m-%d')}.json"
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
        print(f"written to {out}, and {out.parent / 'README.md'}")


def size_or_own(text: str) -> tuple[int, int] | None:
    """``512x640`` to (512, 640), ``own`` to None."""
    return None if text == "own" else shell.size(text)
