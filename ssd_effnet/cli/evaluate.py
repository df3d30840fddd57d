"""Score detection files against KAIST ground truth: miss rates, recall, AP.

Miss rates follow both rule sets, the KAIST devkit's and that of most papers since 2021.
--join is late fusion: detections of several detectors, one per modality, are merged, and scored beside them.
--compare says how two differ, and how sure that is: by stretches of video and, with several files per side, by seeds.

examples:
  ssd-effnet evaluate --annotations KAIST_annotation.json --detections MLPD.txt mine.json --plot curves.png
  ssd-effnet evaluate --annotations data/kaist --detections MLPD.txt --subsets all --rules matlab
  ssd-effnet evaluate --annotations KAIST_annotation.json --compare mine.json MLPD.txt
  ssd-effnet evaluate --annotations data/kaist --join runs/lite0/seed0 runs/20_lwir/seed0 --out late
  ssd-effnet evaluate --annotations data/kaist --compare a/seed?/detections.json --with b/seed?/detections.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet evaluate")
    add = parser.add_argument
    add("--annotations", type=Path, required=True, metavar="FILE_OR_ROOT", help="COCO JSON, or a data set's root")
    task = parser.add_mutually_exclusive_group(required=True)
    text = "a run, KAIST text (image_number,x,y,w,h,score; numbers from 1) or a folder of one per frame, COCO results"
    task.add_argument("--detections", type=Path, nargs="+", metavar="FILE", help=text)
    text = "A and B; or the seeds of A, with those of B in --with"
    task.add_argument("--compare", type=Path, nargs="+", metavar="FILE", help=text)
    task.add_argument("--join", type=Path, nargs="+", metavar="FILE", help="join the detections of these")
    add("--by", choices=("proben", "average", "nms"), help="of --join (default: proben)")
    text = "of proben: share of the boxes that are people; the paper's is 0.5 (default: the mean score)"
    add("--prior", type=shell.share, metavar="P", help=text)
    text = "of --join: folder of the joined detections, COCO results, and images.json, which names their images"
    add("--out", type=Path, metavar="DIR", help=text)
    add("--with", dest="other", type=Path, nargs="+", metavar="FILE", help="the seeds of B")
    add("--videos", action="store_true", help="of --compare: whole videos are left out, not stretches")
    text = "matlab: the KAIST devkit; python: the script most papers since 2021 ran (default: %(default)s)"
    add("--rules", choices=("matlab", "python", "both"), default="both", help=text)
    add("--split", help="frames to take from a data set's root (default: test-all-20)")
    add("--json", type=Path, metavar="OUT.json", help="write the numbers there: of --detections all ten subsets")
    add("--plot", type=shell.picture, metavar="OUT.png", help="draw miss rate against false positives per image")
    shell.add_subsets(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().completed().parse_args(argv)
    from ssd_effnet.evaluation.subsets import REASONABLE

    if args.compare and (args.plot or args.json or args.subsets != REASONABLE):
        parser().error("--plot, --json and --subsets go with --detections or --join, not with --compare")
    if (args.out or args.prior is not None or args.by) and not args.join:
        parser().error("--by, --out and --prior go with --join")
    args.by = args.by or "proben"
    if args.prior is not None and args.by != "proben":
        parser().error("--prior goes with --by proben")
    if args.videos and not args.compare:
        parser().error("--videos goes with --compare")
    if args.other and not args.compare:
        parser().error("--with goes with --compare")
    if args.compare and not args.other:
        if len(args.compare) != 2:
            parser().error("--compare takes two files, or any number with --with")
        args.compare, args.other = args.compare[:1], args.compare[1:]
    evaluate(args)


def evaluate(args: argparse.Namespace) -> None:
    from data_kaist.classes import PERSON
    from data_kaist.detections import write_coco_results, write_images
    from ssd_effnet.evaluation import plots
    from ssd_effnet.evaluation import scores as evaluation
    from ssd_effnet.evaluation.ground_truth import load_ground_truth
    from ssd_effnet.evaluation.late_fusion import join, mean_score
    from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
    from ssd_effnet.evaluation.significance import blocks

    rules = ("matlab", "python") if args.rules == "both" else (args.rules,)
    files = [*args.compare, *args.other] if args.compare else args.join or args.detections
    names = evaluation.short_names(files)
    files = [next(filter(Path.is_file, [path / "detections.json"]), path) for path in files]  # of a run
    truth, found = load_ground_truth(args.annotations, args.split).read_all(files)
    evaluator, tables = MissRateEvaluator(truth.annotations), dict(zip(names, found, strict=True))
    truth.say_doubts(dict(zip(files, found, strict=True)), evaluator)
    if args.compare:
        matchers, n = [evaluator.match(table) for table in tables.values()], len(args.compare)
        first, second = ", ".join(names[:n]), ", ".join(names[n:])
        block = blocks(truth.names, videos=args.videos)
        comparisons = evaluation.compare_detectors(matchers[:n], matchers[n:], block, rules)
        shell.print_table(evaluation.comparison_table(first, second, comparisons))
        print(truth)
        return
    if args.join:
        prior = mean_score(found) if args.prior is None else args.prior
        how = f"{args.by}, prior {prior:.2g}" if args.by == "proben" else args.by
        joined = tables[f"joined by {how}"] = join(found, args.by, prior=prior)
        if args.out:
            evaluation.refuse_a_run(args.out)
            person, ids = min(truth.person_categories or [1]), truth.image_ids or list(range(len(truth.names)))
            write_coco_results(args.out / "detections.json", joined, image_ids=ids, category_ids=[person])
            sizes = [of_image.size for of_image in truth.annotations]
            names = [f"{name}.jpg" for name in truth.names]  # readers cut the ending off
            write_images(args.out / "images.json", ids, names, sizes, {person: PERSON})
    scores = {name: evaluation.score(evaluator, table, rules) for name, table in tables.items()}
    if args.json:
        results = {name: {"annotations": truth.source, **of_file.as_dict()} for name, of_file in scores.items()}
        evaluation.write_results(args.json, results)
    if args.plot:
        plots.save_figure(plots.miss_rate_figure(scores, rules[0]), args.plot, dpi=120)
    shell.print_table(evaluation.results_table(scores, args.subsets))
    print(truth)
