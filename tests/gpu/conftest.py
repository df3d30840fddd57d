"""One table of what was tried on the card or on the fake device, and what came of it."""

import pytest
import torch

rows: list[tuple[str, str, str]] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "tests/gpu/" not in report.nodeid or not (report.when == "call" or report.outcome != "passed"):
        return
    figures = ", ".join(f"{name} {value}" for name, value in report.user_properties)
    reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else figures
    rows.append((report.nodeid.rpartition("/")[2], report.outcome, reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not rows:
        return
    build = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    if torch.cuda.is_available():
        card = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        card = "no card here, so nothing ran on a GPU" + ("; the fake device was tried" if torch.version.cuda else "")
    terminalreporter.section(f"GPU: {card}; {build}")
    width = max(len(name) for name, *_ in rows)
    for name, outcome, said in rows:
        terminalreporter.write_line(f"{name:{width}}  {outcome:8}{said}")
