#!/usr/bin/env python
"""Measure on the machine at hand.

examples:
  scripts/benchmark.py models                                            the study's experiments and EfficientDet-D0
  scripts/benchmark.py models --size 512x640 --runs 9 --threads 2
  scripts/benchmark.py models --experiments experiments/00_vgg16.yaml experiments/05_deconv.yaml
  scripts/benchmark.py models --size own --device cuda
  scripts/benchmark.py models --training --size own --experiments experiments/03_resolution.yaml
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True, metavar="what")
    models = what.add_parser("models", help="parameters, multiply-adds, milliseconds and memory of each experiment")
    models.add_argument("--experiments", type=Path, nargs="+", metavar="FILE", help="default: 00 ... 12 and D0")
    models.add_argument("--size", type=size, default=(512, 640), metavar="HxW", help="or `own`; default: 512x640")
    models.add_argument("--runs", type=int, default=5, help="passes that are timed (default: 5)")
    models.add_argument("--threads", type=int, default=0, help="of torch (default: its own choice)")
    models.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    models.add_argument("--training", action="store_true", help="time forward + loss + backward, not the forward pass")
    models.set_defaults(run=run_models)
    arguments = parser.parse_args()
    result: int = arguments.run(arguments)
    return result


def run_models(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from ssd_effnet.benchmark.models import benchmark_models, how, models_table
    from ssd_effnet.benchmark.timing import describe_machine
    from ssd_effnet.config import ConfigError

    numbered = sorted(EXPERIMENTS.glob("[01][0-9]*.yaml"))
    files = arguments.experiments or [*numbered, EXPERIMENTS / "efficientdet_d0.yaml"]
    settings = {name: getattr(arguments, name) for name in ("size", "runs", "threads", "device", "training")}
    figures = []
    try:
        for figure in benchmark_models(files, **settings):
            figures.append(figure)
            print(f"{figure.name}: {figure.median_ms:.0f} ms", file=sys.stderr)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    machine = describe_machine(arguments.device, arguments.threads, how(arguments.training))
    Console(width=None if sys.stdout.isatty() else 160).print(models_table(figures, machine))
    return 0


def size(text: str) -> tuple[int, int] | None:
    """``512x640`` to (512, 640), ``own`` to None."""
    if text == "own":
        return None
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) >= 32 and int(width) >= 32):
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW of at least 32 pixels each, for example 512x640")
    return int(height), int(width)


if __name__ == "__main__":
    sys.exit(main())
