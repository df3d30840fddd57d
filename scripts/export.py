#!/usr/bin/env python
from _command import run_command

run_command(__name__, "export")
