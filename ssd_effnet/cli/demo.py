"""Run the whole pipeline: synthetic pairs, training, test split, error page.

Finished steps are skipped; `make demo` calls this.

examples:
  ssd-effnet demo
  ssd-effnet demo --frames 1000 trainer.epochs=20
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell

SIZE = (512, 640)


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet demo")
    parser.add_overrides("settings that differ from the demo's")
    parser.add_argument("--frames", type=int, default=500, help="synthetic pairs (default: 500)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    return parser


@shell.command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().completed().parse_intermixed_args(argv)

    from rich.table import Table

    from data_kaist.synthetic import write_dataset
    from ssd_effnet.config.loading import load_experiment
    from ssd_effnet.evaluation.metrics import headline
    from ssd_effnet.training.run import run
    from ssd_effnet.training.run_directory import RunDirectory
    from ssd_effnet.visualize.gallery.drawing import FinishedRun
    from ssd_effnet.visualize.gallery.errors import write_errors

    experiment = load_experiment("demo", arguments.overrides)
    print(f"1. {arguments.frames} synthetic pairs in {experiment.data.root}")
    write_dataset(Path(experiment.data.root), arguments.frames, SIZE, seed=0, jobs=2)
    directory = RunDirectory.of(experiment, arguments.out).path
    print(f"2. training {experiment.name} in {directory}")
    results = run(experiment, arguments.out, resume=True)
    errors = directory / "errors" / "index.html"
    print(f"3. every miss and false alarm in {errors}")
    if not errors.is_file():
        write_errors(FinishedRun.load(directory), errors.parent)

    test = results["test"]
    table = Table(title=f"{experiment.name} on {test['images']} synthetic test pairs, percent", title_justify="left")
    cells = headline(test) | {"minutes": results["minutes"]}
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:.2f}" if value == value else "-" for value in cells.values()))
    shell.print_table(table)
    where, run_of, images = (
        shlex.quote(str(path)) for path in (arguments.out, directory, Path(experiment.data.root, "images", "set06"))
    )
    print(f"errors: {errors}\nnext:")
    print(f"  ssd-effnet detect {run_of} {images} --out found")
    print(f"  ssd-effnet visualize curves {run_of}")
    print(f"  tensorboard --logdir {where}")
    return 0
