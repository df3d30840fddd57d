"""``python -m ssd_effnet`` is ``ssd-effnet``. A study starts its runs with this file."""

import sys

from ssd_effnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
