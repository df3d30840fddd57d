"""Test finished runs again, on another split, annotation set or data set.

Beside each run, in tests/NAME/: results.json, detections.json, detections_kaist.txt. The run's own files stay.

examples:
  ssd-effnet test runs/lite0/seed? data.test=test-night-20
  ssd-effnet test runs/lite0/seed0 data.test_annotations=KAIST_annotation.json --name improved
  ssd-effnet test runs/lite0/seed0 data.kind=coco data.root=data/llvip data.test=test.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet test")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories or tested checkpoints, and key=value")
    parser.add_argument("--name", default="", help="folder below RUN/tests (default: made of the settings)")
    shell.add_subsets(parser)
    return parser


@shell.command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().completed().parse_intermixed_args(argv)
    runs, overrides = shell.without_settings(arguments.runs)
    if not runs:
        parser().error("no RUN")
    if Path(arguments.name).name != arguments.name:
        parser().error("--name is that of a folder, without others before it")

    from data_kaist.errors import Failure
    from ssd_effnet.evaluation.scores import Scores, results_table, short_names
    from ssd_effnet.training.run import test_again
    from ssd_effnet.training.run_directory import RunDirectory

    scores: dict[str, Scores] = {}
    seeds: dict[str, list[str]] = {}
    failed = 0
    names = short_names([RunDirectory.holding(run).path for run in runs])
    for run, name in zip(runs, names, strict=True):
        try:
            folder, by_class = test_again(run, overrides, arguments.name)
        except Failure as error:
            if error.exit_code != 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            failed = 1
            continue
        print(f"written to {folder}")
        for of_class, found in by_class.items():
            row = f"{name}, {of_class}" if len(by_class) > 1 else name
            scores[row] = found
            seeds.setdefault(row.replace(f"/{RunDirectory.holding(run).path.name}", ""), []).append(row)
    if scores:
        shell.print_table(results_table(scores, arguments.subsets, {k: v for k, v in seeds.items() if len(v) > 1}))
    return failed
