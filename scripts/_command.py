"""What the scripts here do: they run a command of the package."""

import sys


def run_command(module: str, command: str) -> None:
    """Run ``ssd-effnet COMMAND`` with the script's arguments. Exit with its code, or with 1 if it is not installed.

    Nothing is run where the script is imported (``module`` is not ``__main__``), as child processes do.
    """
    if module != "__main__":
        return
    try:
        from ssd_effnet.cli.main import main
    except ModuleNotFoundError:
        sys.exit(
            f"error: ssd_effnet is not installed for {sys.executable}; run `make setup`, then "
            "`source .venv/bin/activate`, or `pip install .`"
        )
    sys.exit(main([command, *sys.argv[1:]]))
