#!/usr/bin/env python
"""Another name of `ssd-effnet search`."""

from _door import run

if __name__ == "__main__":
    run("search")
