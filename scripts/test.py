#!/usr/bin/env python
"""Another name of `ssd-effnet test`."""

from _door import run_command

if __name__ == "__main__":
    run_command("test")
