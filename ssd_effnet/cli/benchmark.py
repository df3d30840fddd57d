"""Measure speed and memory on this machine.

examples:
  ssd-effnet benchmark models                                            the study's experiments and EfficientDet-D0
  ssd-effnet benchmark models --size 512x640 --runs 9 --threads 2
  ssd-effnet benchmark models --experiments experiments/00_vgg16.yaml experiments/05_deconv.yaml
  ssd-effnet benchmark models --size own --device cuda
  ssd-effnet benchmark models --training --size own --experiments experiments/03_resolution.yaml
  ssd-effnet benchmark all --json figures.json                           every stage against its plain reference
  ssd-effnet benchmark data --root data/kaist --runs 9                   your own files, not synthetic ones
  ssd-effnet benchmark export --threads 2                                onnxruntime against torch
  ssd-effnet benchmark train --device cuda --batch 16 --compile
  ssd-effnet benchmark wait --root data/kaist --workers 16 --step-ms 100 200   does the loader keep up with such steps?
  ssd-effnet benchmark processes                                         a training step shared by CPU processes
  ssd-effnet benchmark growth --picture growth.png                       time and memory for 1, 2, 4, 8 times the work
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_effnet.cli import shell

if TYPE_CHECKING:
    from ssd_effnet.benchmark.rows import Row

STAGES = {
    "data": "training pair, test pair, kept frames; against Pillow + numpy and pure decoding",
    "loss": "MultiBox, forward and backward; against a loop over images",
    "postprocess": "decoding and NMS; against a loop over an n x n matrix",
    "evaluate": "miss rates of a test split; against an evaluator on dictionaries",
    "forward": "VGG16-BN, EfficientNet-B4, lite0; against the multiply rate and efficientnet-pytorch",
    "export": "an ONNX file of lite0 in onnxruntime; against the detector in torch",
    "train": "a training step of EfficientNet-B4; against the same in NCHW with the plain loss",
}


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet benchmark")
    what = parser.add_subparsers(required=True, metavar="what")
    models = what.add_parser("models", help="parameters, multiply-adds, milliseconds and memory of each experiment")
    models.add_argument("--experiments", type=Path, nargs="+", metavar="FILE", help="default: 00 ... 12 and D0")
    models.add_argument("--size", type=size, default=(512, 640), metavar="HxW", help="or `own`; default: 512x640")
    models.add_argument("--runs", type=int, default=5, help="passes that are timed (default: 5)")
    models.add_argument("--threads", type=int, default=0, help="of torch (default: its own choice)")
    models.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    models.add_argument("--training", action="store_true", help="time forward + loss + backward, not the forward pass")
    models.set_defaults(run=run_models)
    for name, text in (*STAGES.items(), ("all", "all of these")):
        stage = what.add_parser(name, help=text)
        stage.add_argument("--runs", type=int, default=5, help="rounds that are timed (default: 5)")
        stage.add_argument("--threads", type=int, default=1, help="of torch (default: 1; then processor time is taken)")
        stage.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of forward and train")
        stage.add_argument("--size", type=size, default=None, metavar="HxW", help="of images (default: as published)")
        stage.add_argument("--batch", type=int, default=2, help="images of a training step (default: 2)")
        stage.add_argument("--compile", action="store_true", help="measure torch.compile of a training step too")
        stage.add_argument("--root", type=Path, help="a data set in KAIST's layout (default: synthetic pairs)")
        stage.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
        stage.set_defaults(run=run_stages, stages=tuple(STAGES) if name == "all" else (name,))
    growth = what.add_parser("growth", help="how time and memory of the stages grow with their work")
    growth.add_argument("--runs", type=int, default=3, help="rounds that are timed (default: 3)")
    growth.add_argument("--factors", type=int, nargs="+", default=[1, 2, 4, 8], help="(default: 1 2 4 8)")
    growth.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
    growth.add_argument("--picture", type=Path, metavar="OUT", help="draw them, for example growth.png")
    growth.set_defaults(run=run_growth)
    wait = what.add_parser("wait", help="share of time that training waits for data, with a model that only sleeps")
    wait.add_argument("--experiment", type=Path, default="01_effnet_b4", metavar="FILE")
    wait.add_argument("--root", help="its data (default: 200 synthetic pairs)")
    wait.add_argument("--batch", type=int, default=16, help="images of a step (default: 16)")
    wait.add_argument("--workers", type=int, default=16, help="of the loader (default: 16)")
    wait.add_argument("--cache", choices=("none", "memory", "disk"), default="none")
    wait.add_argument("--step-ms", type=float, nargs="+", default=[100, 200, 400], help="(default: 100 200 400)")
    wait.set_defaults(run=run_wait)
    processes = what.add_parser("processes", help="a training step shared by processes of this machine's CPU")
    processes.add_argument("--experiment", type=Path, default="01_effnet_b4", metavar="FILE")
    processes.add_argument("--size", type=size, default=(256, 320), metavar="HxW", help="or `own`; default: 256x320")
    processes.add_argument("--batch", type=int, default=8, help="of all processes together (default: 8)")
    processes.add_argument("--counts", type=int, nargs="+", default=[1, 2], help="of processes (default: 1 2)")
    processes.set_defaults(run=run_processes)
    return parser


@shell.command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().completed().parse_args(argv)
    result: int = arguments.run(arguments)
    return result


def run_models(arguments: argparse.Namespace) -> int:
    from ssd_effnet.benchmark.models import benchmark_models, how, models_table
    from ssd_effnet.training.machine import machine_line, usable_device

    usable_device(arguments.device)
    from ssd_effnet.config.loading import EXPERIMENTS

    numbered = sorted(EXPERIMENTS.glob("[01][0-9]*.yaml"))
    files = arguments.experiments or [*numbered, EXPERIMENTS / "efficientdet_d0.yaml"]
    settings = {name: getattr(arguments, name) for name in ("size", "runs", "threads", "device", "training")}
    figures = []
    for figure in benchmark_models(files, **settings):
        figures.append(figure)
        print(f"{figure.name}: {figure.median_ms:.0f} ms", file=sys.stderr)
    machine = machine_line(arguments.device, arguments.threads, how(arguments.training))
    shell.print_table(models_table(figures, machine))
    return 0


def run_stages(arguments: argparse.Namespace) -> int:
    import torch

    from ssd_effnet.benchmark.rows import rows_as_dict, rows_table, versions
    from ssd_effnet.training.machine import machine_line, usable_device
    from ssd_effnet.training.runtime import threads_of

    usable_device(arguments.device)
    rows: list[Row] = []
    with threads_of(arguments.threads), tempfile.TemporaryDirectory() as folder:
        for stage in arguments.stages:
            for row in rows_of(stage, arguments, arguments.root or Path(folder)):
                rows.append(row)
                print(f"{row.stage}: {row.case}: {row.own_ms:.3g} ms", file=sys.stderr)
        clock = "processor time" if torch.get_num_threads() == 1 and arguments.device == "cpu" else "wall time"
        how = f"{clock}, {arguments.runs} rounds in turns, medians; results agreed with the reference before"
        machine = machine_line(arguments.device, arguments.threads, how)
        limits = limits_of(arguments.device, arguments.runs)
    shell.print_table(rows_table(rows, f"{machine}; {limits}"))
    if arguments.json:
        figures = {"machine": machine, "limits": limits, "versions": versions(), "rows": rows_as_dict(rows)}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def rows_of(stage: str, a: argparse.Namespace, root: Path) -> Iterator[Row]:
    """The rows of one stage, as the arguments want it."""
    sized = {} if a.size is None else {"size": a.size}
    if stage == "data":
        from ssd_effnet.benchmark.data import benchmark_data

        return benchmark_data(root, runs=a.runs, **sized)
    if stage == "loss":
        from ssd_effnet.benchmark.loss import benchmark_loss

        return benchmark_loss(runs=a.runs, **sized)
    if stage == "postprocess":
        from ssd_effnet.benchmark.postprocess import benchmark_postprocess

        return benchmark_postprocess(runs=a.runs, **sized)
    if stage == "evaluate":
        from ssd_effnet.benchmark.evaluate import benchmark_evaluate

        return benchmark_evaluate(runs=a.runs)
    if stage == "forward":
        from ssd_effnet.benchmark.forward import benchmark_forward

        return benchmark_forward(runs=a.runs, device=a.device, **sized)
    if stage == "export":
        return rows_of_export(a)
    from ssd_effnet.benchmark.train import benchmark_train

    return benchmark_train(runs=a.runs, device=a.device, batch=a.batch, compiled=a.compile, **sized)


def rows_of_export(a: argparse.Namespace) -> Iterator[Row]:
    """An untrained lite0, exported to a folder that is gone afterwards: weights do not change the time."""
    from ssd_effnet.benchmark.onnx import benchmark_onnx, write_untrained
    from ssd_effnet.inference.export import export_detector

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "lite0.ckpt"
        write_untrained("lite0", checkpoint)
        done = export_detector(checkpoint, size=a.size)
        yield from benchmark_onnx(checkpoint, done.path, done.input_shape[1:], runs=a.runs)


def limits_of(device: str, runs: int) -> str:
    """What the machine multiplies, in words."""
    from ssd_effnet.benchmark.limits import multiply_rate

    matrices, convolutions = multiply_rate(device, runs)
    return f"matrices {matrices:.0f} GFLOP/s, 3x3 convolutions {convolutions:.0f} GFLOP/s in fp32"


def run_growth(arguments: argparse.Namespace) -> int:
    from ssd_effnet.benchmark.growth import draw_growth, growth_table, measure_growth
    from ssd_effnet.training.machine import machine_line

    points = list(measure_growth(arguments.factors, runs=arguments.runs))
    machine = machine_line("cpu", 1, "processor time, fastest")
    shell.print_table(growth_table(points, machine))
    if arguments.json:
        figures = {"machine": machine, "points": [vars(point) for point in points]}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if arguments.picture:
        draw_growth(points, arguments.picture)
    return 0


def run_wait(a: argparse.Namespace) -> int:
    from data_kaist.synthetic import write_dataset
    from ssd_effnet.benchmark.wait import measure_waits
    from ssd_effnet.config.loading import load_experiment
    from ssd_effnet.training.machine import cores, processor

    with tempfile.TemporaryDirectory() as folder:
        settings = {"data.root": a.root or folder, "data.workers": a.workers, "data.cache": a.cache}
        settings |= {"data.cache_folder": f"{folder}/cache", "trainer.batch_size": a.batch}
        experiment = load_experiment(a.experiment, [f"{key}={value}" for key, value in settings.items()])
        if not a.root:
            write_dataset(Path(folder), 200, (512, 640), seed=0)
        print(f"{processor()}, {cores()} cores; batch {a.batch}, {a.workers} workers, cache {a.cache}")
        for wait in measure_waits(experiment, a.step_ms):
            print(
                f"step of {wait.step_ms:5.0f} ms: {wait.share:6.1%} of the time waiting, "
                f"{wait.images_per_second:.0f} images/s"
            )
    return 0


def run_processes(a: argparse.Namespace) -> int:
    from ssd_effnet.benchmark.processes import measure_processes
    from ssd_effnet.config.loading import load_experiment
    from ssd_effnet.training.machine import cores, processor

    overrides = ["backbone.pretrained=none", "backbone.norm=batch", f"trainer.batch_size={a.batch}"]
    if a.size is not None:
        overrides.append(f"input.size=[{a.size[0]},{a.size[1]}]")
    print(f"{processor()}, {cores()} cores, one thread a process; whole batch {a.batch}")
    for shared in measure_processes(load_experiment(a.experiment, overrides), a.counts):
        print(
            f"{shared.processes} processes: step of {shared.wall:.2f} s by the clock, {shared.processor:.2f} s of "
            "processors, all together"
        )
    return 0


def size(text: str) -> tuple[int, int] | None:
    """``512x640`` to (512, 640), ``own`` to None."""
    return None if text == "own" else shell.size(text)
