#!/usr/bin/env python
from _door import run_command

run_command(__name__, "test")
