"""Measure speed and memory on this machine.

examples:
  ssd-effnet benchmark models                                            the study's experiments and EfficientDet-D0
  ssd-effnet benchmark models --size 512x640 --runs 9 --threads 2
  ssd-effnet benchmark models --experiments 00_vgg16 05_deconv
  ssd-effnet benchmark models --size own --device cuda
  ssd-effnet benchmark models input.modality=halfway trainer.precision=bf16-mixed --experiments 04_fpn 08_bifpn
  ssd-effnet benchmark models --training --size own --experiments 03_resolution
  ssd-effnet benchmark all --json figures.json                           every stage against its plain reference
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_effnet.cli import shell

if TYPE_CHECKING:
    from ssd_effnet.benchmark.rows import Row

STAGES = {
    "data": "training pair, test pair, kept frames; against Pillow + numpy",
    "loss": "MultiBox, forward and backward; against a loop over images",
    "postprocess": "decoding and NMS; against a loop over boxes",
    "whole": "training step and inference of lite0 and 00_vgg16; against the same with loops for the loss and NMS",
    "evaluate": "miss rates of a test split; against a loop over images",
    "forward": "VGG16-BN, EfficientNet-B4, lite0; against NCHW without folding and efficientnet-pytorch",
    "export": "an ONNX file of lite0 in onnxruntime; against the detector in torch",
    "train": "a training step of EfficientNet-B4; against the same in NCHW with the plain loss",
}


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet benchmark")
    what = parser.add_subparsers(required=True, metavar="what")
    models = what.add_parser("models", help="parameters, multiply-adds, milliseconds and memory of each experiment")
    models.add_argument("--experiments", type=Path, nargs="+", metavar="FILE", help="default: 00 ... 12 and D0")
    models.add_argument(
        "--size", type=size_or_own, default=(512, 640), metavar="HxW", help="or `own`; default: 512x640"
    )
    models.add_argument("--runs", type=int, default=5, help="passes that are timed (default: 5)")
    models.add_argument("--threads", type=int, default=0, help="of torch (default: its own choice)")
    models.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    models.add_argument("--training", action="store_true", help="time forward + loss + backward, not the forward pass")
    models.add_overrides("settings of all of them: input.modality=halfway, trainer.precision=bf16-mixed")
    models.set_defaults(run=run_models)
    for name, text in (*STAGES.items(), ("all", "all of these")):
        stage = what.add_parser(name, help=text)
        stage.add_argument("--runs", type=int, default=5, help="rounds that are timed (default: 5)")
        stage.add_argument("--threads", type=int, default=1, help="of torch (default: 1; then processor time is taken)")
        stage.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of forward and train")
        stage.add_argument(
            "--size", type=size_or_own, default=None, metavar="HxW", help="of images (default: as published)"
        )
        stage.add_argument("--batch", type=int, default=2, help="images of a training step (default: 2)")
        stage.add_argument("--compile", action="store_true", help="measure torch.compile of a training step too")
        stage.add_argument("--root", type=Path, help="a data set in KAIST's layout (default: synthetic pairs)")
        stage.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
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


@shell.command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_overrides(argv)
    if arguments.overrides and arguments.run is not run_models:
        parser().error(f"unknown arguments: {' '.join(arguments.overrides)}")
    arguments.run(arguments)
    return 0


def run_models(arguments: argparse.Namespace) -> None:
    from ssd_effnet.benchmark.models import benchmark_models, how, models_table
    from ssd_effnet.config.loading import EXPERIMENTS
    from ssd_effnet.training.machine import machine_line, usable_device

    usable_device(arguments.device)
    numbered = sorted(EXPERIMENTS.glob("[01][0-9]*.yaml"))
    words = list(map(str, arguments.experiments or []))  # behind the files key=value may stand, too
    files = [Path(word) for word in words if "=" not in word] or [*numbered, Path("efficientdet_d0")]
    arguments.overrides += [word for word in words if "=" in word]
    settings = {
        name: getattr(arguments, name) for name in ("size", "runs", "threads", "device", "training", "overrides")
    }
    figures = []
    for figure in benchmark_models(files, **settings):
        figures.append(figure)
        print(f"{figure.name}: {figure.median_ms:.0f} ms", file=sys.stderr)
    machine = machine_line(arguments.device, arguments.threads, how(arguments.training))
    shell.print_table(models_table(figures, machine))


def run_stages(arguments: argparse.Namespace) -> None:
    import torch

    from ssd_effnet.benchmark.rows import rows_as_dict, rows_table, versions
    from ssd_effnet.training.machine import machine_line, usable_device
    from ssd_effnet.training.runtime import threads_of

    usable_device(arguments.device)
    rows: list[Row] = []
    with threads_of(arguments.threads), tempfile.TemporaryDirectory() as folder:
        for stage in arguments.stages:
            for row in rows_of(stage, arguments, Path(folder)):
                rows.append(row)
                print(f"{row.stage}: {row.case}: {row.own_ms:.3g} ms", file=sys.stderr)
        clock = "processor time" if torch.get_num_threads() == 1 and arguments.device == "cpu" else "wall time"
        how = f"{clock}, {arguments.runs} rounds in turns, medians; results agreed with the reference before"
        machine = machine_line(arguments.device, arguments.threads, how)
    shell.print_table(rows_table(rows, machine))
    if arguments.json:
        figures = {"machine": machine, "versions": versions(), "rows": rows_as_dict(rows)}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


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


def rows_of(stage: str, a: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """The rows of one stage, as the arguments want it; files go into a folder that is removed afterwards."""
    sized = {} if a.size is None else {"size": a.size}
    if stage == "data":
        from ssd_effnet.benchmark.data import benchmark_data

        return benchmark_data(a.root or folder, runs=a.runs, **sized)
    if stage == "loss":
        from ssd_effnet.benchmark.loss import benchmark_loss

        return benchmark_loss(runs=a.runs, **sized)
    if stage == "postprocess":
        from ssd_effnet.benchmark.postprocess import benchmark_postprocess

        return benchmark_postprocess(runs=a.runs, **sized)
    if stage == "whole":
        from ssd_effnet.benchmark.whole import benchmark_whole

        return benchmark_whole(runs=a.runs, batch=a.batch, **sized)
    if stage == "evaluate":
        from ssd_effnet.benchmark.evaluate import benchmark_evaluate

        return benchmark_evaluate(runs=a.runs)
    if stage == "forward":
        from ssd_effnet.benchmark.forward import benchmark_forward

        return benchmark_forward(runs=a.runs, device=a.device, **sized)
    if stage == "export":
        from ssd_effnet.benchmark.onnx import benchmark_onnx

        return benchmark_onnx(folder, a.size, runs=a.runs)
    from ssd_effnet.benchmark.train import benchmark_train

    return benchmark_train(runs=a.runs, device=a.device, batch=a.batch, compiled=a.compile, **sized)


def size_or_own(text: str) -> tuple[int, int] | None:
    """``512x640`` to (512, 640), ``own`` to None."""
    return None if text == "own" else shell.size(text)
