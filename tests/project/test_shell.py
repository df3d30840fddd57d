"""Every command: help with examples that parse, one sentence for what is wrong, exit codes, colours, completion."""

import argparse
import ast
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
import warnings
from pathlib import Path

import pytest
from commands import command
from rich.table import Table

from data_kaist.errors import Doubt, Failure
from ssd_effnet.cli import shell
from ssd_effnet.cli.main import COMMANDS, main
from ssd_effnet.training.run_directory import Interrupted

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("[!_]*.py"))
OTHER_NAMES = {"inspect_data": "inspect", "make_synthetic": "synthesize"}  # of commands, in scripts/


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    line, variables = [sys.executable, *map(str, words)], {**os.environ, **environment}
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=variables)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples(name: str) -> None:
    done = command(name, "--help")
    examples = done.stdout.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert sum(f"{line.strip()} ".startswith(f"ssd-effnet {name} ") for line in examples) >= 2
    assert done.returncode == 0 and done.stdout.startswith(f"usage: ssd-effnet {name} ")


@pytest.mark.parametrize(
    "words",
    [[], ["no-such-command"], ["test", "RUN", "--name", ".."], *([name, "--no-such-option"] for name in COMMANDS)],
    ids=str,
)
def test_a_wrong_word_is_one_sentence_that_names_help(words: list[str]) -> None:
    done = command(*words)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert "--help" in done.stderr and done.stderr.count("\n") == 1


def test_one_page_lists_the_commands_without_torch() -> None:
    """Help and completion come at once; torch alone takes seconds."""
    modules = "ssd_effnet.evaluation.plots, ssd_effnet.evaluation.ground_truth"
    code = f"import sys, {modules}; from ssd_effnet.cli.main import parser as p; "
    code += "print(p().format_help()); print(*sys.modules)"
    *page, loaded = run("-c", code).stdout.splitlines()
    for name in COMMANDS:
        (line,) = [line for line in page if line.startswith(f"  {name} ")]
        assert 30 < len(line) <= 100 and line.endswith(".")
    assert not [line for line in page if "--plugins" in line]  # of a command, behind its name
    assert "argparse" in loaded and not set(loaded.split()) & {"torch", "lightning", "matplotlib", "optuna", "onnx"}


def test_the_version_is_the_packages() -> None:
    done = command("--version")
    assert done.returncode == 0 and re.fullmatch(r"ssd-effnet \S+\n", done.stdout)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"ssd-effnet": f"{main.__module__}:{main.__name__}"}


def test_every_script_is_another_name_of_a_command() -> None:
    assert {OTHER_NAMES.get(script.stem, script.stem) for script in SCRIPTS} == set(COMMANDS)
    for script in SCRIPTS:
        text = script.read_text()
        assert os.access(script, os.X_OK) and text.startswith("#!/usr/bin/env python\n") and text.count("\n") <= 4
        assert text.endswith(f'run_command(__name__, "{OTHER_NAMES.get(script.stem, script.stem)}")\n')
    words = ("--annotations", "nowhere", "--detections", "a.json")  # needs no torch
    done, as_module = run("scripts/evaluate.py", *words), run("-m", "ssd_effnet", "evaluate", *words)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", as_module.stderr) and "nowhere" in done.stderr


@pytest.mark.parametrize("missing", ["ssd_effnet", "omegaconf", "torch"])
def test_without_what_the_project_needs_a_sentence_says_how_to_install_it(missing: str) -> None:
    block = f"import sys; sys.modules[{missing!r}] = None; sys.path.insert(0, 'scripts'); sys.argv[1:] = ['lite0']"
    done = run("-c", f"{block}; from _command import run_command; run_command('__main__', 'summarize')")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {missing} ")
    assert "`make setup`" in done.stderr and "`pip install .`" in done.stderr


def test_every_error_of_the_project_is_a_failure() -> None:
    """So that a command says it in a sentence wherever it comes from."""
    for path in [*(ROOT / "ssd_effnet").rglob("*.py"), *(ROOT / "data_kaist").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and path != ROOT / "data_kaist" / "errors.py":
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                built_in = bases & {"Exception", "ValueError", "RuntimeError", "OSError", "TypeError"}
                assert not built_in or "Failure" in bases, f"{path}: {node.name}"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Failure("a.jpg: is truncated"), 1, "error: a.jpg: is truncated\n"),
        (Interrupted("stopped in epoch 2; --resume goes on"), 130, "error: stopped in epoch 2; --resume goes on\n"),
        (OSError("no space left"), 1, "error: no space left\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_exit_codes(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    @shell.command
    def main(argv: object) -> int:
        raise error

    assert main() == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("rank", "said"), [("0", "warning: a\\nb is odd\n"), ("1", "")])
def test_a_doubt_is_a_line_of_the_first_process(
    rank: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert shell.command(lambda argv: warnings.warn("a\nb is odd", Doubt, stacklevel=1) or 0)() == 0
    assert capsys.readouterr().err == said


def test_a_background_threads_full_disk_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """As TensorBoard's writer meets it, which raises it in the first thread once more."""

    def full() -> None:
        raise OSError(28, "No space left on device", "events")

    @shell.command
    def main(argv: object) -> int:
        thread = threading.Thread(target=full)
        thread.start()
        thread.join()
        full()
        return 0

    assert main([]) == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'events'\n"


def test_a_defect_keeps_its_traceback() -> None:
    @shell.command
    def main(argv: object) -> int:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        main([])


def test_brackets_in_a_table_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", title="a[b].jpg")
    table.add_row("out[a] [/b] :smile:")
    shell.print_table(table)
    lines = [line.strip(" │") for line in capsys.readouterr().out.splitlines()]
    assert "a[b].jpg" in lines and "out[a] [/b] :smile:" in lines


def test_a_pipe_that_is_closed_is_no_error() -> None:
    code = "from ssd_effnet.cli import shell; shell.command(lambda argv: [print(i) for i in range(10**5)] and 0)"
    command = [sys.executable, "-c", f"import sys; {code.replace('; shell', '; sys.exit(shell', 1)}())"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()  # as `| head -1` does
        assert process.stderr.read() == ""
    assert process.returncode == 141


def completions(line: str, folder: Path) -> list[str]:
    """What a shell is offered behind ``line``: asked as argcomplete's shell code asks."""
    answer = folder / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    program = line.split()[0].replace("ssd-effnet", "ssd_effnet/__main__.py")
    done = run(program, **asked, _ARGCOMPLETE_STDOUT_FILENAME=str(answer))
    assert done.returncode == 0, done.stderr
    return [word.strip() for word in answer.read_text().split("\n")]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("scripts/study.py re", ["report"]),
        ("ssd-effnet tr", ["train"]),
        ("ssd-effnet train lite0 optimizer.l", ["optimizer.lr="]),
    ],
)
def test_tab_completes(line: str, offered: list[str], tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    assert completions(line, tmp_path) == offered


def test_settings_complete() -> None:
    assert shell.complete_setting("input.normalize=") == ["input.normalize=true", "input.normalize=false"]
    assert shell.complete_setting("no.such=") == []
    assert {"data.root=", "neck.topology="} <= set(shell.complete_setting(""))


@pytest.mark.parametrize("text", ["-1", "1.5", "²", "", "one", "9" * 5000])
def test_numbers_are_whole_and_in_decimal_digits(text: str) -> None:
    for kind in (shell.positive, shell.whole_number, lambda side: shell.size(f"{side}x512")):
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)
    assert (shell.whole_number("0"), shell.positive("1"), shell.size("32x64")) == (0, 1, (32, 64))


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: object) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert shell.command(main)([]) == 130 and capsys.readouterr().err == "stopped\n"
    assert signal.getsignal(signal.SIGTERM) is before
