#!/usr/bin/env python
"""Draw a finished run's test frames: ground truth, detections with scores, misses and false alarms.

examples:
  scripts/visualize.py runs/lite0/seed0
  scripts/visualize.py runs/lite0/seed0 --count 40 --score 0.5 --out pictures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_kaist.errors import DataError
from ssd_effnet.config import ConfigError
from ssd_effnet.gallery import write_pictures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: RUN/pictures)")
    parser.add_argument("--count", type=int, default=16, help="how many frames, the worst first (default: 16)")
    parser.add_argument("--score", type=float, default=0.3, help="least score of a detection (default: 0.3)")
    arguments = parser.parse_args()
    out = arguments.out or arguments.run / "pictures"
    try:
        written = write_pictures(arguments.run, out, count=arguments.count, min_score=arguments.score)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(written)} pictures in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
