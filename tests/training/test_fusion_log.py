"""What a weighted neck has learned is written down each epoch."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from untrained import SMALL, splits

from ssd_effnet.config.loading import load_experiment
from ssd_effnet.inference.predictor import load_detector
from ssd_effnet.models.necks import GraphNeck
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import RunDirectory


def test_fusion_weights_of_each_epoch(few_pairs: Path, tmp_path: Path) -> None:
    data = splits(few_pairs, val="val.json", test="")
    loop = ("trainer.epochs=2", "trainer.monitor=val/loss_total", "trainer.test_checkpoint=last")
    recipe = ("optimizer.lr=0.001", "schedule.name=constant", "trainer.ema_decay=0.5")
    levels = ("backbone.levels=[0,1,2]", "extras.strides=[]", "anchors.sizes=[25,60,140]")
    keys = [*SMALL, "backbone.name=efficientnet-b0", *levels, *data, *loop, *recipe]
    e = load_experiment("06_weighted_fusion", keys)
    run(e, tmp_path)
    directory = RunDirectory.of(e, tmp_path)
    events = EventAccumulator(str(directory)).Reload()
    # three levels: the node of the deepest has one input and nothing to weigh
    wanted = {f"fusion/td{i}/{name}" for i in range(2) for name in (f"in{i}", f"td{i + 1}")}
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("fusion/")} == wanted
    for tag in wanted:
        assert len(events.Scalars(tag)) == 2
    # fast fusion: the weights of a node sum to almost 1
    last = {tag: events.Scalars(tag)[-1].value for tag in wanted}
    for i in range(2):
        assert last[f"fusion/td{i}/in{i}"] + last[f"fusion/td{i}/td{i + 1}"] == pytest.approx(1, abs=1e-3)
    assert any(abs(value - 0.5) > 1e-4 for value in last.values())
    # of the averaged weights, which are the tested ones
    detector = load_detector(directory.path).detector
    assert isinstance(detector.neck, GraphNeck)
    for node, inputs in detector.neck.fusion_weights().items():
        for name, weight in inputs.items():
            assert last[f"fusion/{node}/{name}"] == pytest.approx(weight, abs=1e-6)
    assert directory.metrics()[-1]["fusion/td0/in0"] == pytest.approx(last["fusion/td0/in0"], abs=1e-6)
