"""Metrics are one table: a user's own is one function and one line, and everything reads it there."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from untrained import LITE0, of_pairs

from data_kaist.structures import Annotations, DetectionTable
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.config.yaml_files import ConfigError
from ssd_effnet.evaluation.metrics import METRICS, figure_in, headline, metric, metric_of, monitors
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.scores import Scores, results_table, score
from ssd_effnet.structures import NonFiniteError
from ssd_effnet.study.records import load_study
from ssd_effnet.study.report import write
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import RunDirectory

BOX = (100.0, 100.0, 140.0, 200.0)


@pytest.fixture
def recall_at_1() -> Iterator[str]:
    @metric("recall_at_1", unit="%", lower_is_better=False)
    def recall_at_1(scores: Scores) -> float:
        return float(100 * (1 - scores.matcher.result("reasonable_all").reference_miss_rate[-1]))

    yield "recall_at_1"
    del METRICS["recall_at_1"]


def scored() -> Scores:
    truth = [Annotations.from_rows([BOX], size=(512, 640)), Annotations.from_rows([BOX], size=(512, 640))]
    found = DetectionTable(np.array([0]), np.array([BOX]), np.array([0.9]))
    return score(MissRateEvaluator(truth), found)


def test_the_table_gives_the_results_file_and_the_log_in_their_order() -> None:
    results = scored().as_dict()
    assert list(results) == ["matlab", "python", "recall", "people", "ap"]
    assert list(results["ap"]) == ["AP", "AP50", "AP75"]
    assert (results["recall"], results["people"], results["matlab"]["reasonable_day"]) == (50.0, 2, None)
    named = dict(scored().named())
    assert next(iter(named)) == "MR/reasonable_all" and list(named)[-3:] == ["AP", "AP50", "AP75"] and len(named) == 13
    assert figure_in(results, "MR/reasonable_all") == named["MR/reasonable_all"]
    assert list(headline(results)) == ["MR all", "MR day", "MR night", "AP", "AP50"]
    assert [metric_of(name).mode for name in ("val/MR/near", "val/AP75", "val/loss_total")] == ["min", "max", "min"]


def test_only_one_rule_set_or_no_ap_leaves_the_rest_alone() -> None:
    truth = MissRateEvaluator([Annotations.from_rows([BOX], size=(512, 640))])
    results = score(truth, DetectionTable.empty(), ("python",), with_ap=False).as_dict()
    assert list(results) == ["python", "recall", "people", "ap"] and results["ap"]["AP50"] is None


def test_an_own_metric_is_in_results_and_may_be_watched(recall_at_1: str) -> None:
    results = scored().as_dict()
    assert results[recall_at_1] == 50.0 and headline(results)[recall_at_1] == 50.0
    assert dict(scored().named())[recall_at_1] == 50.0
    assert "recall_at_1" in str([column.header for column in results_table({"a": scored()}).columns])
    assert f"val/{recall_at_1}" in monitors(("person",)) and "val/recall" not in monitors(("person",))
    assert f"val/{recall_at_1}/cyclist" in monitors(("person", "cyclist"))
    assert load_experiment(LITE0, [f"trainer.monitor=val/{recall_at_1}"]).trainer.monitor == "val/recall_at_1"


def test_a_monitor_that_is_no_metric_is_refused() -> None:
    for value, meant in (("val/AP5", "val/AP50"), ("AP", "val/AP"), ("val/recall_at_1", "val/loss_total")):
        with pytest.raises(ConfigError, match=f"`trainer.monitor`: '{value}' is not one of .*{meant}"):
            load_experiment(LITE0, [f"trainer.monitor={value}"])
    with pytest.raises(ConfigError, match=r"`schedule\.monitor`"):
        load_experiment(LITE0, ["schedule.name=plateau", "schedule.monitor=val/AP/cyclist"])


@pytest.mark.parametrize(
    ("group", "overrides"), [("trainer", []), ("schedule", ["schedule.name=plateau", "trainer.monitor=val/loss_total"])]
)
def test_a_monitor_that_is_not_a_number_ends_the_run_by_its_key(
    group: str, overrides: list[str], few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "AP75", replace(METRICS["AP75"], function=lambda scores: math.nan))
    e = of_pairs(few_pairs, *overrides, f"{group}.monitor=val/AP75")
    with pytest.raises(NonFiniteError, match=rf"^{group}\.monitor: val/AP75 "):
        run(e, tmp_path, echo=lambda line: None)


def test_names_are_given_once() -> None:
    with pytest.raises(ValueError, match="AP"):
        metric("AP", lower_is_better=True)(lambda scores: 0.0)

    def recall(scores: Scores) -> float:
        return 0.0

    recall.__qualname__ = "recall"  # as a plugin's own, of the same name as the project's
    with pytest.raises(ValueError, match="recall"):
        metric("recall", lower_is_better=True)(recall)
    with pytest.raises(ValueError, match="slash"):
        metric("a/b", lower_is_better=True)(lambda scores: 0.0)


def test_an_own_metric_chooses_the_epoch_and_is_reported(recall_at_1: str, few_pairs: Path, tmp_path: Path) -> None:
    more = ("data.test=five.json", "data.allow_overlap=true", f"trainer.monitor=val/{recall_at_1}")
    e = of_pairs(few_pairs, *more)
    results = run(e, tmp_path, echo=lambda line: None)
    directory = RunDirectory.of(e, tmp_path)
    assert results["val"]["monitor"] == "val/recall_at_1" and results["test"][recall_at_1] == results["test"]["recall"]
    assert f"val/{recall_at_1}" in directory.metrics()[0]
    page = write(tmp_path, measure_latency=False).read_text()
    assert page.count(recall_at_1) >= 2
    assert recall_at_1 in (tmp_path / "report" / "results.csv").read_text().splitlines()[0]
    assert recall_at_1 in (tmp_path / "report" / "results.md").read_text().splitlines()[0]
    content = json.loads(directory.results_file.read_text())
    del content["test"][recall_at_1]  # a run of before the metric: no number, and no damage
    directory.results_file.write_text(json.dumps(content))
    assert directory.damage() == "" and np.isnan(load_study(tmp_path).runs[0].figure(recall_at_1))
