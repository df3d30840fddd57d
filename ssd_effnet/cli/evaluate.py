"""Score detection files against KAIST ground truth: miss rates, recall, AP.

Miss rates follow both rule sets, the KAIST devkit's and that of most papers since 2021.
--compare tests whether one is better than another, by a paired bootstrap over the images.

examples:
  ssd-effnet evaluate --annotations KAIST_annotation.json --detections MLPD.txt mine.json --plot curves.png
  ssd-effnet evaluate --annotations data/kaist --detections runs/lite0/seed0/detections_kaist.txt --rules both
  ssd-effnet evaluate --annotations KAIST_annotation.json --compare mine.json MLPD.txt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet evaluate")
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="FILE_OR_ROOT", help="COCO JSON, or a data set's root"
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument(
        "--detections",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="KAIST text (image_number,x,y,w,h,score; numbers from 1), COCO results (.json) or a devkit folder",
    )
    task.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="is A or B better, and how sure is that?"
    )
    parser.add_argument(
        "--rules",
        choices=("matlab", "python", "both"),
        default="both",
        help="matlab: the KAIST devkit; python: the script most papers since 2021 ran (default: %(default)s)",
    )
    parser.add_argument(
        "--split", default="test-all-20", help="frames to take from a data set's root (default: %(default)s)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT.json", help="write the numbers there: of --detections all ten subsets"
    )
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="draw miss rate against false positives per image")
    parser.add_argument("--no-ap", action="store_true", help="leave out AP, which takes most of the time")
    return parser


@shell.command
def main(argv: Sequence[str] | None = None) -> int:
    args = parser().completed().parse_args(argv)
    if args.compare and args.plot:
        parser().error("--plot goes with --detections, not with --compare")
    evaluate(args)
    return 0


def evaluate(args: argparse.Namespace) -> None:
    from ssd_effnet.evaluation import scores as evaluation
    from ssd_effnet.evaluation.miss_rate import MissRateEvaluator

    rules = ("matlab", "python") if args.rules == "both" else (args.rules,)
    files = args.compare or args.detections
    names = evaluation.short_names(files)
    truth = evaluation.load_ground_truth(args.annotations, args.split)
    evaluator = MissRateEvaluator(truth.annotations)
    tables = {name: truth.read_detections(path) for name, path in zip(names, files, strict=True)}
    for path, table in zip(files, tables.values(), strict=True):
        if doubt := truth.doubt(path, table, evaluator):
            print(f"warning: {path}: {doubt}", file=sys.stderr)
    if args.compare:
        first, second = names
        a, b = ([evaluator.match(table)] for table in tables.values())
        comparisons = evaluation.compare_detectors(a, b, rules)
        if args.json:
            compared = evaluation.comparisons_as_dict(first, second, comparisons)
            evaluation.write_results(args.json, {"annotations": truth.source, **compared})
        shell.print_table(evaluation.comparison_table(first, second, comparisons))
        print(truth)
        return
    scores = {name: evaluation.score(evaluator, table, rules, with_ap=not args.no_ap) for name, table in tables.items()}
    if args.json:
        results = {name: {"annotations": truth.source, **of_file.as_dict()} for name, of_file in scores.items()}
        evaluation.write_results(args.json, results)
    if args.plot:
        evaluation.plot_miss_rates(args.plot, scores, rules[0])
    shell.print_table(evaluation.results_table(scores))
    print(truth)
