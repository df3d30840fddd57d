"""Draw a detector's errors, curves, features and training data.

`ssd-effnet visualize COMMAND --help` lists a command's options.

examples:
  ssd-effnet visualize errors runs/lite0/seed0
  ssd-effnet visualize errors runs/lite0/seed0 --subset all_h20 --fppi 1 --out errors
  ssd-effnet visualize compare runs/04_fpn/seed0 runs/08_bifpn/seed0 --out compared
  ssd-effnet visualize curves runs/04_fpn/seed0 runs/08_bifpn/seed0 --out curves.png
  ssd-effnet visualize curves MLPD.txt mine.json --annotations KAIST_annotation.json
  ssd-effnet visualize curves MLPD.txt mine.json --annotations KAIST_annotation.json --subsets near far --size 7 3
  ssd-effnet visualize figure --frames set08/V001/I02579 set09/V000/I01139 --detectors runs/lite0/seed0 MLPD.txt
  ssd-effnet visualize compare MLPD.txt MSDS-RCNN.txt data.root=data/kaist --annotations KAIST_annotation.json
  ssd-effnet visualize features runs/lite0/seed0 --image set06/V000/I00019 --detection 2
  ssd-effnet visualize calibration runs/20_lwir/seed0 runs/20b_halfway/seed0 --keep
  ssd-effnet visualize data lite0 augment.flip.p=1 --count 4

For a run of another machine, data.root=... gives its test data here; the fingerprint must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssd_effnet.cli import shell
from ssd_effnet.evaluation.error_analysis import FPPI
from ssd_effnet.evaluation.subsets import RULES, SUBSETS

# Each command is a function of the arguments below, which returns its message. Imports are local: torch starts slowly.


def errors(run: Path, out: Path | None, data: dict[str, Any], **settings: Any) -> str:
    """A page of one run's errors: people missed and false alarms by kind, and what each kind costs."""
    from ssd_effnet.training.run_directory import RunDirectory
    from ssd_effnet.visualize.gallery.errors import write_errors
    from ssd_effnet.visualize.gallery.finished_run import FinishedRun

    is_run = run.is_dir() or run.suffix == ".ckpt"
    beside = RunDirectory.holding(run).path / "errors" if is_run else Path(f"errors_{_flat(run.parent / run.stem)}")
    out = out or beside
    (tested,) = FinishedRun.load_all([run], **data).values()
    page = write_errors(tested, out, **settings)
    table = [f"{row[0]:<38}{row[1]:>7}{row[3]:>12}" for row in page.charts[0].rows]
    head = f"{'kind':<38}{'number':>7}{'MR without':>12}"
    return "\n".join([*page.lead, head, *table, f"{out / 'index.html'}: {len(page.entries):,} pictures"])


def compare_runs(a: Path, b: Path, out: Path, data: dict[str, Any], **settings: Any) -> str:
    """A page of what only one of two runs finds. Each has its own least score within --fppi."""
    from ssd_effnet.visualize.gallery.compare import write_comparison
    from ssd_effnet.visualize.gallery.finished_run import FinishedRun

    one, other = FinishedRun.load_all([a, b], **data).values()
    page = write_comparison(one, other, out, **settings)
    return "\n".join([*page.lead, f"{out / 'index.html'}: {len(page.entries):,} pictures"])


def curves(files: Sequence[Path], out: Path, **settings: Any) -> str:
    """Miss rate against false positives per image: several detectors in one picture, runs and result files alike."""
    from ssd_effnet.evaluation.scores import results_table
    from ssd_effnet.visualize.gallery.curves import write_curves

    scores = write_curves(files, out, **settings)
    shell.print_table(results_table(scores, settings["subsets"]))
    return str(out)


def calibration(runs: Sequence[Path], out: Path, **settings: Any) -> str:
    """How sure a score is: reliability diagrams on the test split, ECE, and the temperature of the validation split."""
    from ssd_effnet.visualize.calibration import write_calibration

    shell.print_table(write_calibration(runs, out, **settings))
    return str(out)


def figure(detectors: Sequence[Path], frames: Sequence[str], out: Path, data: dict[str, Any], **settings: Any) -> str:
    """A figure for a paper: a row per detector, a column per frame, both modalities, hits, misses and false alarms."""
    from ssd_effnet.visualize.gallery.figure import write_figure
    from ssd_effnet.visualize.gallery.finished_run import FinishedRun

    runs = list(FinishedRun.load_all(detectors, **data).values())
    return "\n".join(map(str, write_figure(runs, frames, out, **settings)))


def features(run: Path, image: str, detection: int, out: Path | None, overrides: list[str]) -> str:
    """What a detector makes of one image: maps of every part, anchors, why it scores."""
    from ssd_effnet.inference.predictor import load_detector
    from ssd_effnet.training.run_directory import RunDirectory
    from ssd_effnet.visualize.features import find_sample, write_features

    predictor, directory = load_detector(run), RunDirectory.holding(run)
    predictor.experiment = directory.at_hand(predictor.experiment, overrides)
    sample, truth = find_sample(predictor, image, directory)
    out = out or directory.path / "pictures" / f"features_{_flat(image)}"
    pictures, table = write_features(predictor, sample, out, truth=truth, detection=detection)
    shell.print_table(table)
    return "\n".join(map(str, pictures))


def data(experiment: Path, out: Path | None, overrides: list[str], **settings: Any) -> str:
    """What the network really gets: augmented images with boxes, denormalised, and channel statistics."""
    from ssd_effnet.config.loading import load_experiment
    from ssd_effnet.visualize.data import write_data_view

    e = load_experiment(experiment, overrides)
    return "\n".join(map(str, write_data_view(e, out or Path(f"data_{e.name}"), **settings)))


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet visualize")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    a_run = "a run directory, the checkpoint it was tested with, or a file of detections"
    parsers: dict[Any, shell.Parser] = {}

    def command(call: Callable[..., str], name: str = "") -> Callable[..., Any]:
        """A subcommand, as what adds its arguments. Its help is the docstring of what it calls."""
        added: shell.Parser = commands.add_parser(name or call.__name__, help=call.__doc__, doc=call.__doc__)
        added.set_defaults(call=call)
        parsers[call] = added
        if call in (errors, compare_runs, curves, figure):
            text = "COCO JSON, or a data set's root, to score against (default: the first run's test split)"
            added.add_argument("--annotations", type=Path, metavar="FILE_OR_ROOT", help=text)
            added.add_argument("--split", help="frames of a root (default: test-all-20)")
        if call in (errors, compare_runs, figure):
            text = "whose people count (default: %(default)s)"
            added.add_argument("--subset", choices=tuple(SUBSETS), default="reasonable_all", help=text)
            added.add_argument("--class", dest="of_class", metavar="NAME", help="of data.classes (default: person's)")
            point, text = added.add_mutually_exclusive_group(), "false positives per image (default: %(default)s)"
            point.add_argument("--fppi", type=positive_number, default=FPPI, help=text)
            if call is not compare_runs:
                text = "least score of the operating point, in place of an FPPI"
                point.add_argument("--score", dest="min_score", type=shell.share, help=text)
        if call in (errors, compare_runs):
            text = "pictures at most (default: %(default)s)"
            added.add_argument("--count", type=shell.positive, default=2000, help=text)
        if call is curves:
            shell.add_subsets(added)
        return added.add_argument

    add = command(errors)
    add("run", type=Path, help=a_run)
    add("--out", type=Path, metavar="DIR", help="folder of the page (default: RUN/errors)")

    add = command(compare_runs, "compare")
    add("a", type=Path, help=a_run)
    add("b", type=Path, help="another one, tested on the same data")
    add("--out", type=Path, default=Path("compared"), metavar="DIR", help="folder of the page (default: %(default)s)")

    add = command(curves)
    add("files", type=Path, nargs="+", help="run directories, COCO results, KAIST texts, devkit folders")
    text = "inches of the whole picture (default: 5.2 per subset, 5.4)"
    add("--size", type=positive_number, nargs=2, metavar=("WIDTH", "HEIGHT"), help=text)
    text = "of the legends: best first, or as given (default: %(default)s)"
    add("--order", choices=("best", "given"), default="best", help=text)
    add("--names", nargs="+", default=[], metavar="NAME", help="of the files, in their order")
    add("--rules", choices=tuple(RULES), default="matlab", help="rule set (default: %(default)s)")
    add("--out", type=shell.picture, default=Path("curves.png"), help="picture (default: %(default)s)")

    add = command(calibration)
    add("runs", type=Path, nargs="+", metavar="RUN", help="run directories")
    text = "from which detections count, in the fit as well (default: %(default)s, that of `detect`; 0: all)"
    add("--score", dest="least", type=shell.share, default=0.3, help=text)
    text = "write the temperature into the checkpoint: `detect`, `Predictor` and exports then give calibrated scores"
    add("--keep", action="store_true", help=text)
    add("--out", type=shell.picture, default=Path("calibration.png"), help="picture (default: %(default)s)")

    add = command(figure)
    add("--frames", nargs="+", required=True, metavar="FRAME", help="names as set08/V001/I02579, a column each")
    add("--detectors", type=Path, nargs="+", required=True, metavar="RUN_OR_FILE", help="of detections, a row each")
    add("--names", nargs="+", default=[], metavar="NAME", help="of the rows")
    add("--width", type=positive_number, default=7.0, help="inches (default: %(default)s, a page of two columns)")
    add("--out", type=Path, default=Path("figure"), help="written as OUT.pdf and OUT.png (default: %(default)s)")

    add = command(features)
    add("run", type=Path, help="a run directory or a checkpoint")
    text = "a file (a pair's other file is found in KAIST's layout), or the name of a frame of the run's test split"
    add("--image", required=True, help=text)
    add("--detection", type=int, default=1, help="whose evidence is drawn (default: 1, the surest)")
    add("--out", type=Path, help="folder for the pictures (default: pictures/features_NAME in the run)")

    add = command(data)
    add("experiment", type=Path, help="NAME, experiments/NAME.yaml, or the config.yaml of a run")
    add("--count", type=shell.positive, default=6, help="how many frames (default: 6)")
    add("--out", type=Path, help="folder for the pictures (default: data_NAME)")

    for call in (errors, compare_runs, features):
        parsers[call].add_overrides("where the data are: data.root=...")
    parsers[data].add_overrides("settings that differ, before the options")
    return parser


def _flat(given: str | Path) -> str:
    """A path in one name."""
    return str(given).strip("./").replace("/", "_")


def positive_number(text: str) -> float:
    """An argument above 0, and finite."""
    if not 0 < (value := float(text)) < float("inf"):
        raise ValueError
    return value


def main(argv: Sequence[str] | None = None) -> None:
    arguments = vars(parser().parse_overrides(argv))
    for name in ("files", "detectors", "runs"):  # behind these key=value may stand, too
        if name in arguments:
            arguments[name], where = shell.without_settings(arguments[name])
            arguments["overrides"] = [*where, *arguments["overrides"]]
    call = arguments.pop("call")
    if call in (errors, compare_runs, figure):
        names = ("overrides", "of_class", "annotations", "split")
        arguments["data"] = {name: arguments.pop(name) for name in names}
    print(call(**arguments))
