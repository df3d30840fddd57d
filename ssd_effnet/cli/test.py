"""Test finished runs again: another split, annotation set or data set, failing cameras.

Beside each run, in tests/NAME/: results.json, detections.json, detections_kaist.txt. The run's own files stay.
--stress tests each corruption of the images (docs/running.md) at three strengths, for a table, a plot and TensorBoard.

examples:
  ssd-effnet test runs/lite0/seed? data.test=test-night-20
  ssd-effnet test runs/lite0/seed0 data.test_annotations=KAIST_annotation.json --name improved
  ssd-effnet test runs/lite0/seed0 data.kind=coco data.root=data/llvip data.test=test.json
  ssd-effnet test runs/lite0/seed0 runs/20b_halfway/seed0 --stress --plot stress.png
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet test")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run directories or the checkpoints in their results.json, and key=value"
    )
    parser.add_argument("--name", default="", help="folder below RUN/tests (default: made of the settings)")
    parser.add_argument("--stress", action="store_true", help="test under corruptions of the images, too")
    parser.add_argument("--seed", type=shell.whole_number, help="of --stress (default: 0)")
    text = "of --stress: miss rates of the first subset by kind and strength (default: stress.png)"
    parser.add_argument("--plot", type=shell.picture, metavar="FILE", help=text)
    shell.add_subsets(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().completed().parse_intermixed_args(argv)
    runs, overrides = shell.without_settings(arguments.runs)
    if not runs:
        parser().error("no RUN")
    if not arguments.stress and (arguments.plot or arguments.seed is not None):
        parser().error("--plot and --seed go with --stress")
    if Path(arguments.name).name != arguments.name or arguments.name == "..":
        parser().error("--name is that of a folder, without others before it")

    from data_kaist.errors import Doubt, Failure
    from ssd_effnet.evaluation.plots import save_figure
    from ssd_effnet.evaluation.scores import results_table, short_names
    from ssd_effnet.training.run import CLEAN, test_again
    from ssd_effnet.training.run_directory import RunDirectory
    from ssd_effnet.visualize.stress import Stressed, stress_figure, stress_table

    tested: dict[str, Stressed] = {}
    seeds: dict[str, list[str]] = {}
    failed, data = 0, set[str]()
    directories = [RunDirectory.holding(run).path.resolve() for run in runs]
    for run, name, experiment in zip(runs, short_names(directories), experiments_of(directories), strict=True):
        try:
            stress = arguments.seed or 0 if arguments.stress else None
            folder, tests = test_again(run, overrides, arguments.name, stress=stress)
        except Failure as error:
            if error.exit_code != 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            failed = 1
            continue
        print(f"written to {folder}")
        data.add(RunDirectory(folder).results()["data"]["fingerprint"])
        for of_class in tests[CLEAN]:
            more = f", {of_class}" if len(tests[CLEAN]) > 1 else ""
            row, mean = name + more, experiment + more
            tested[row] = {test: by_class[of_class] for test, by_class in tests.items()}
            seeds.setdefault(mean, []).append(row)
    if len(data) > 1:
        warnings.warn("the runs were tested on different data: their figures cannot be compared", Doubt, stacklevel=1)
    if tested:
        scores = {row: of_row[CLEAN] for row, of_row in tested.items()}
        shell.print_table(results_table(scores, arguments.subsets, {k: v for k, v in seeds.items() if len(v) > 1}))
    if tested and arguments.stress:
        groups = {name: [tested[row] for row in rows] for name, rows in seeds.items()}
        for subset in arguments.subsets:
            shell.print_table(stress_table(groups, subset))
        plot = arguments.plot or Path("stress.png")
        save_figure(stress_figure(groups, arguments.subsets[0]), plot, dpi=120)
        print(plot)
    return failed


def experiments_of(directories: Sequence[Path]) -> list[str]:
    """Names of what runs are seeds of: equal for runs beside each other alone."""
    from ssd_effnet.evaluation.scores import short_names

    parents = list(dict.fromkeys(directory.parent for directory in directories))
    names = dict(zip(parents, short_names(parents), strict=True))
    return [names[directory.parent] for directory in directories]
