"""Table and plot of miss rates under corruptions."""

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from ssd_effnet.visualize.stress import stress_figure, stress_table


def rates(**by_kind: list[float]) -> Any:
    tests = {("clean", 0): 10.0} | {(kind, s): mr for kind, of in by_kind.items() for s, mr in enumerate(of, start=1)}
    return {test: SimpleNamespace(percent=lambda rules, mr=mr: {"near": mr}) for test, mr in tests.items()}


def test_rows_are_kinds_and_experiments_and_lines_their_means() -> None:
    pair = [rates(black_lwir=[20, 30, 60], fog=[12, 14, 16]), rates(black_lwir=[22, 30, 64], fog=[12, 14, 16])]
    tested = {"halfway": pair, "visible": [rates(fog=[15, 45, 90])]}
    text = io.StringIO()
    Console(file=text, width=120).print(stress_table(tested, "near"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.getvalue().splitlines() if "│" in line]
    assert rows == [
        ["black lwir", "halfway", "10.00 ± 0.00", "21.00 ± 1.41", "30.00 ± 0.00", "62.00 ± 2.83"],
        ["", "visible", "10.00", "-", "-", "-"],
        ["fog", "halfway", "10.00 ± 0.00", "12.00 ± 0.00", "14.00 ± 0.00", "16.00 ± 0.00"],
        ["", "visible", "10.00", "15.00", "45.00", "90.00"],
    ]
    shown = [axes for axes in stress_figure(tested, "near").axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["black lwir", "fog"]
    lines = [[list(line.get_ydata()) for line in axes.lines] for axes in shown]
    assert lines == [[[10, 21, 30, 62], [10]], [[10, 12, 14, 16], [10, 15, 45, 90]]]
