"""Draw a detector's errors, curves, features and training data.

`ssd-effnet visualize COMMAND --help` lists a command's options.

examples:
  ssd-effnet visualize errors runs/lite0/seed0
  ssd-effnet visualize errors runs/lite0/seed0 --subset all_h20 --fppi 1 --out errors
  ssd-effnet visualize compare runs/04_fpn/seed0 runs/08_bifpn/seed0 --out compared
  ssd-effnet visualize curves runs/04_fpn/seed0 runs/08_bifpn/seed0 --out curves.png
  ssd-effnet visualize curves MLPD.txt mine.json --annotations KAIST_annotation.json
  ssd-effnet visualize features runs/lite0/seed0 --image set06/V000/I00019 --detection 2
  ssd-effnet visualize data experiments/lite0.yaml augment.flip.p=1 --count 4

For a run of another machine, data.root=... gives its test data here; the fingerprint must be equal.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from data_kaist.errors import Doubt
from ssd_effnet.cli import shell
from ssd_effnet.evaluation.subsets import RULES, SUBSETS

Commands: TypeAlias = "argparse._SubParsersAction[shell.Parser]"
Call = Callable[[argparse.Namespace], str]
"""Runs the subcommand and returns its message. Imports are local, since torch starts slowly."""


def add_command(commands: Commands, name: str, call: Call) -> shell.Parser:
    """A subcommand; its help is the docstring of what it calls."""
    words = call.__doc__ or ""
    parser: shell.Parser = commands.add_parser(name, help=words.partition("\n")[0], doc=words)
    parser.set_defaults(call=call)
    return parser


# ------------------------------------------------------------------------------------------------- errors


def add_errors(commands: Commands) -> None:
    parser = add_command(commands, "errors", errors)
    parser.add_argument("run", type=Path, help="a run directory or its tested checkpoint")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the page (default: RUN/errors)")
    point = parser.add_mutually_exclusive_group()
    point.add_argument(
        "--fppi", type=_positive(float), help="false positives per image of the operating point (default: 0.1)"
    )
    point.add_argument("--score", type=float, help="least score of the operating point, in place of an FPPI")
    _add_gallery(parser)


def errors(arguments: argparse.Namespace) -> str:
    """A page of one run's errors: people missed and false alarms by kind, and what each kind costs."""
    from ssd_effnet.evaluation.error_analysis import FPPI
    from ssd_effnet.training.run_directory import RunDirectory
    from ssd_effnet.visualize.gallery.errors import write_errors

    out = arguments.out or RunDirectory.holding(arguments.run).path / "errors"
    fppi = FPPI if arguments.fppi is None else arguments.fppi
    page = write_errors(
        arguments.run,
        out,
        subset=arguments.subset,
        fppi=fppi,
        min_score=arguments.score,
        count=arguments.count,
        overrides=arguments.overrides,
        of_class=arguments.of_class,
    )
    table = [f"{row[0]:<38}{row[1]:>7}{row[3]:>12}" for row in page.charts[0].rows]
    head = f"{'kind':<38}{'number':>7}{'MR without':>12}"
    return "\n".join([*page.lead, head, *table, f"{out / 'index.html'}: {len(page.entries):,} pictures"])


# ------------------------------------------------------------------------------------------------- compare


def add_compare(commands: Commands) -> None:
    parser = add_command(commands, "compare", compare_runs)
    parser.add_argument("a", type=Path, help="a run directory or its tested checkpoint")
    parser.add_argument("b", type=Path, help="another one, tested on the same data")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the page (default: compared)")
    parser.add_argument(
        "--fppi", type=_positive(float), default=0.1, help="false positives per image of both (default: 0.1)"
    )
    _add_gallery(parser)


def compare_runs(arguments: argparse.Namespace) -> str:
    """A page of what one run finds and another misses, each at its own score for the same false positives per image."""
    from ssd_effnet.visualize.gallery.compare import write_comparison

    out = arguments.out or Path("compared")
    page = write_comparison(
        arguments.a,
        arguments.b,
        out,
        subset=arguments.subset,
        fppi=arguments.fppi,
        count=arguments.count,
        overrides=arguments.overrides,
        of_class=arguments.of_class,
    )
    kinds = [f"{words}: {sum(e.kind == kind for e in page.entries):,}" for kind, words in page.kinds.items()]
    return "\n".join([*page.lead, *kinds, f"{out / 'index.html'}: {len(page.entries):,} pictures"])


def _positive(kind: type) -> Callable[[str], float]:
    def read(text: str) -> float:
        value: float = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    read.__name__ = "positive number"  # what the refusal calls it
    return read


def _add_gallery(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--subset", choices=tuple(SUBSETS), default="reasonable_all", help="whose people count (default: %(default)s)"
    )
    parser.add_argument("--count", type=_positive(int), default=2000, help="pictures at most (default: %(default)s)")
    _add_class(parser)


def _add_class(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--class", dest="of_class", metavar="NAME", help="of data.classes (default: that of person)")


# ------------------------------------------------------------------------------------------------- curves


def add_curves(commands: Commands) -> None:
    parser = add_command(commands, "curves", curves)
    parser.add_argument(
        "files", type=Path, nargs="+", help="run directories, COCO results, KAIST texts, devkit folders"
    )
    parser.add_argument("--annotations", type=Path, metavar="FILE_OR_ROOT", help="COCO JSON, or a data set's root")
    parser.add_argument("--split", default="test-all-20", help="frames to take from a root (default: %(default)s)")
    parser.add_argument("--rules", choices=tuple(RULES), default="matlab", help="rule set (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("curves.png"), help="picture: .png, .svg, .pdf (default: %(default)s)"
    )


def curves(arguments: argparse.Namespace) -> str:
    """Miss rate against false positives per image: several detectors in one picture, runs and result files alike."""
    from ssd_effnet.evaluation.scores import results_table
    from ssd_effnet.visualize.gallery.curves import write_curves

    a = arguments
    where = [str(path) for path in a.files if "=" in str(path) and not path.exists()]
    files = [path for path in a.files if str(path) not in where]
    where += a.overrides
    scores = write_curves(files, a.out, annotations=a.annotations, split=a.split, rules=a.rules, overrides=where)
    shell.print_table(results_table(scores))
    return str(a.out)


# ------------------------------------------------------------------------------------------------- features


def add_features(commands: Commands) -> None:
    parser = add_command(commands, "features", features)
    parser.add_argument("run", type=Path, help="a run directory or a checkpoint")
    parser.add_argument("--image", required=True, help="a file, or the name of a frame of the run's test split")
    parser.add_argument("--lwir", type=Path, help="the LWIR file of a pair (default: the partner in KAIST's layout)")
    parser.add_argument("--detection", type=int, default=1, help="whose evidence is drawn (default: 1, the surest)")
    parser.add_argument("--out", type=Path, help="folder for the page (default: pictures/features_NAME in the run)")


def features(arguments: argparse.Namespace) -> str:
    """What a detector makes of one image: maps of every part, fusion weights, anchors, why it scores."""
    from ssd_effnet.inference.predictor import load_detector
    from ssd_effnet.training.run_directory import RunDirectory
    from ssd_effnet.visualize.feature_page import default_folder, find_sample, write_feature_page

    predictor = load_detector(arguments.run)
    directory = RunDirectory.holding(arguments.run)
    predictor.experiment = directory.at_hand(predictor.experiment, arguments.overrides)
    sample, truth = find_sample(predictor, arguments.image, arguments.lwir, directory)
    out = arguments.out or default_folder(arguments.run, arguments.image)
    return write_feature_page(predictor, sample, out, truth=truth, detection=arguments.detection).summary


# ------------------------------------------------------------------------------------------------- data


def add_data(commands: Commands) -> None:
    parser = add_command(commands, "data", data)
    parser.add_argument("experiment", type=Path, help="NAME, experiments/NAME.yaml, the config.yaml of a run, or a run")
    parser.add_overrides("settings that differ, before the options")
    parser.add_argument("--stage", default="train", help="train (default), val or test")
    parser.add_argument("--count", type=int, default=6, help="how many frames (default: 6)")
    parser.add_argument("--draws", type=int, help="augmentations per frame (default: 4 in training, else 1)")
    parser.add_argument("--epoch", type=int, default=0, help="the first epoch that is drawn, from 0 (default: 0)")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: data_NAME)")


def data(arguments: argparse.Namespace) -> str:
    """What the network really gets: augmented images with boxes, denormalised, and channel statistics."""
    from ssd_effnet.config.loading import load_experiment
    from ssd_effnet.training.run_directory import RunDirectory
    from ssd_effnet.visualize.data import channel_table, write_data_view

    if arguments.experiment.is_dir():
        directory = RunDirectory(arguments.experiment)
        experiment = load_experiment(directory.config_file, arguments.overrides)
        if edited := directory.edited(directory.trained()):
            warnings.warn(
                f"{directory.config_file} was edited, and the run had otherwise: {edited}", Doubt, stacklevel=1
            )
        if experiment.data.root == directory.experiment().data.root:
            experiment = directory.at_hand(experiment)
    else:
        experiment = load_experiment(arguments.experiment, arguments.overrides)
    view = write_data_view(
        experiment,
        arguments.out or Path(f"data_{experiment.name}"),
        stage=arguments.stage,
        count=arguments.count,
        draws=arguments.draws,
        epoch=arguments.epoch,
    )
    shell.print_table(channel_table(view))
    return "\n".join(str(path) for path in view.pictures)


# ------------------------------------------------------------------------------------------------- all


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet visualize")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_errors, add_compare, add_curves, add_features, add_data):
        add(commands)
    return parser


@shell.command
def main(argv: Sequence[str] | None = None) -> int:
    arguments, rest = parser().completed().parse_known_args(argv)
    if unknown := [word for word in rest if "=" not in word or word.startswith("-")]:
        parser().error(f"unknown arguments: {' '.join(unknown)}")
    arguments.overrides = [*getattr(arguments, "overrides", []), *rest]
    print(arguments.call(arguments))
    return 0
