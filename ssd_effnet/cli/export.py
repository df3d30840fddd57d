"""Export a trained detector as one file: ONNX, or its weights alone.

Input: `images`, uint8 (batch, channels, height, width), not normalised; channels are red, green, blue, LWIR as far as
the modality has them. Outputs, best first: `boxes` float32 (batch, D, 4), xyxy in pixels of the input; `scores` float32
(batch, D); `labels` int64 (batch, D), class index from 1, 0 on padding. Metadata hold classes, modality, size,
experiment, commit and NMS settings.

examples:
  ssd-effnet export runs/lite0/seed0                                     to runs/lite0/seed0/checkpoints/best.onnx
  ssd-effnet export runs/lite0/seed0 --size 256x320 --out small.onnx     images of half the size
  ssd-effnet export best.ckpt --nms outside                              decoded boxes, for an NMS of your own
  ssd-effnet export runs/lite0/seed0 --weights                           best.safetensors, for `detect` and `init_from`
  ssd-effnet export runs/lite0/seed0 --weights --half                    kernels in float16: half the size

in another program:
  session = onnxruntime.InferenceSession("best.onnx")
  boxes, scores, labels = session.run(None, {"images": images})
  session.get_modelmeta().custom_metadata_map["classes"]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet export")
    add = parser.add_argument
    add("checkpoint", type=Path, help="a .ckpt, or a run directory")
    add("--size", type=shell.size, metavar="HxW", help="of the images in pixels (default: as in training)")
    add("--nms", choices=("inside", "outside"), default="inside", help="outside: the best decoded boxes before NMS")
    add("--weights", action="store_true", help="the weights alone, as safetensors with config, scores and licence note")
    add("--half", action="store_true", help="with --weights: kernels in float16")
    add("--out", type=Path, metavar="FILE", help="default: beside the checkpoint, under its name")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = parser()
    arguments = options.completed().parse_args(argv)
    of_graph = arguments.size or arguments.nms != "inside"
    if (arguments.half and not arguments.weights) or (arguments.weights and of_graph):
        options.error("--weights goes with --half and --out alone, and --half with --weights")

    from ssd_effnet.inference.export import export_detector, export_weights

    if arguments.weights:
        done = export_weights(arguments.checkpoint, arguments.out, half=arguments.half)
        size = done.path.stat().st_size / 1e6
        print(f"{done.metadata['experiment']}, weights in {done.metadata['weights']}: {done.path} ({size:.1f} MB)")
        return
    done = export_detector(arguments.checkpoint, arguments.out, size=arguments.size, nms=arguments.nms)
    channels, height, width = done.input_shape
    print(
        f"{done.metadata['experiment']} written to {done.path} ({done.path.stat().st_size / 1e6:.1f} MB)\n"
        f"images uint8 (batch, {channels}, {height}, {width}) -> boxes (batch, {done.rows}, 4), scores and labels "
        f"(batch, {done.rows}), NMS {arguments.nms}"
    )
