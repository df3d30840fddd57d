"""``python -m ssd_effnet`` is ``ssd-effnet``; a study's runs are started by this file."""

import sys

from ssd_effnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
