"""Tables of experiments/README.md equal the reports in experiments/results."""

import csv
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"
README = (FOLDER / "README.md").read_text("utf-8")
STUDIES = [path.stem for path in sorted((FOLDER / "results").glob("*.md"))]
COLUMNS = {"MR all": "MR all", "difference": "difference of MR all", "AP ±": "AP", "AP50": "AP50"}  # here: there


def table(text: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table, by heading."""
    lines = text[text.index("\n|") + 1 :].split("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"[+-]?\d+\.\d+", cell)]


def section(study: str) -> str:
    (found,) = [part for part in README.split("\n### ") if f"(results/{study}.md)" in part]
    return found


@pytest.mark.parametrize("study", STUDIES)
def test_the_readme_says_what_the_report_said(study: str) -> None:
    reported = {row["experiment"]: row for row in table("\n" + (FOLDER / "results" / f"{study}.md").read_text("utf-8"))}
    shown = table(section(study))
    assert [re.findall(r"`(\w+)`", row["experiment"])[0] for row in shown] == list(reported)
    compared = 0
    for row, there in zip(shown, reported.values(), strict=True):
        assert row["verdict"].split(":")[0] == there["verdict"].split(" (")[0].replace("–", "")
        assert row["against"] == there["parent"].split("_")[0].replace("–", "")
        for heading, cell in row.items():
            column = next((column for begin, column in COLUMNS.items() if heading.startswith(begin)), None)
            if column:
                assert numbers(cell) == pytest.approx(numbers(there[column]), abs=0.051), (there["experiment"], heading)
                compared += len(numbers(cell))
    assert compared > 5 * len(shown)


@pytest.mark.parametrize("study", STUDIES)
def test_every_run_of_a_table_is_listed(study: str) -> None:
    with (FOLDER / "results" / f"{study}.csv").open(encoding="utf-8", newline="") as file:
        runs = list(csv.DictReader(file))
    reported = table("\n" + (FOLDER / "results" / f"{study}.md").read_text("utf-8"))
    for row in reported:
        rates = [float(run["MR_reasonable_all"]) for run in runs if run["experiment"] == row["experiment"]]
        assert len(rates) == int(row["seeds"])
        assert sum(rates) / len(rates) == pytest.approx(numbers(row["MR all"])[0], abs=0.0051)
    assert {run["commit"] for run in runs} == set(re.findall(r"commit\s`([^`]+)`", section(study)))
