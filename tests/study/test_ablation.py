"""A chain taken apart, and keys that are laid over all experiments of a study."""

from pathlib import Path

import pytest

from ssd_effnet.config.keys import settings
from ssd_effnet.config.loading import ConfigError, differences, load_experiment
from ssd_effnet.study.ablation import steps, write_without
from ssd_effnet.study.plan import hidden_by, overlay, plan

ROOT = Path(__file__).parents[2]
LAST = ROOT / "experiments/08_bifpn.yaml"


def test_each_step_is_taken_away_alone(tmp_path: Path) -> None:
    files, left_out = write_without(LAST, tmp_path)
    last = load_experiment(LAST)
    changed = {file.stem.removeprefix("08_bifpn_without_"): load_experiment(file) for file in files}
    assert [step.name for step in steps(LAST)][-1] == "08_bifpn" and len(changed) + len(left_out) == len(steps(LAST))
    assert differences(changed["06_weighted_fusion"], last) == ["neck.fusion"]
    assert changed["06_weighted_fusion"].ancestors[0] == "08_bifpn"
    assert settings(changed["06_weighted_fusion"])["neck.fusion"] == "sum"
    # a later step changed upsampling once more: both go, back to what it was before the first
    assert settings(changed["05_deconv_and_07b_nearest"])["neck.upsample"] == "bilinear"
    assert settings(changed["07b_nearest"])["neck.upsample"] == "transposed"
    for name, experiment in changed.items():
        assert differences(experiment, last) == sorted(experiment.changes), name
    (no_network,) = left_out
    assert no_network.startswith("01_effnet_b4: ") and "backbone.levels" in no_network
    assert {file.stem for file in tmp_path.iterdir()} == {file.stem for file in files}


def test_what_is_not_another_network_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: lite0.yaml\noptimizer: {lr: 0.01}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\noptimizer: {lr: 0.001}\n")  # lite0's own again
    files, left_out = write_without(tmp_path / "b.yaml", tmp_path / "without")
    assert "a: without it the network is the same" in left_out and "b_without_b" in [file.stem for file in files]


def test_what_goes_together_leaves_later_steps_alone(tmp_path: Path) -> None:
    for name, base, keys in (
        ("a", "lite0", "optimizer: {lr: 0.01}"),
        ("b", "a", "optimizer: {lr: 0.02, weight_decay: 0.1}"),
        ("c", "b", "optimizer: {weight_decay: 0.2}"),
    ):
        (tmp_path / f"{name}.yaml").write_text(f"base: {base}.yaml\n{keys}\n")
    write_without(tmp_path / "c.yaml", tmp_path / "without")
    without = load_experiment(tmp_path / "without" / "c_without_a_and_b.yaml")
    assert (without.optimizer.lr, without.optimizer.weight_decay) == (load_experiment("lite0").optimizer.lr, 0.2)


def test_keys_laid_over_all(tmp_path: Path) -> None:
    text = "base: lite0.yaml\ndescription: Small?\ninput: {size: [64, 96]}\nschedule: {name: cosine}\n"
    (tmp_path / "small.yaml").write_text(f"{text}trainer: {{epochs: 2}}\n")
    laid = overlay(tmp_path / "small.yaml")
    assert laid == ["input.size=[64,96]", "schedule.name=cosine", "trainer.epochs=2"]
    jobs = plan([Path("00b_vgg16_rmsprop"), Path("02_widen_3x3")], [0], [*laid, "trainer.epochs=3"], tmp_path / "out")
    first, second = (job.experiment for job in jobs)
    assert first.input.size == second.input.size == [64, 96] and first.trainer.epochs == 3
    (note,) = hidden_by(laid, jobs)
    assert note.startswith("00b_vgg16_rmsprop changes") and "schedule.name" in note
    mlpd = Path("mlpd")  # its classes are a map, which is laid whole
    assert load_experiment("lite0", overlay(mlpd)).data.classes == load_experiment(mlpd).data.classes
    (tmp_path / "nothing.yaml").write_text("")
    assert overlay(tmp_path / "nothing.yaml") == []
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match=r"list\.yaml: must hold `key: value`"):
        overlay(tmp_path / "list.yaml")


def test_the_twins_recipe_lets_studies_on_small_data_tell() -> None:
    e = load_experiment("twin")
    assert e.trainer.ema_decay > 0 and e.trainer.test_checkpoint == "last" and e.schedule.final_lr_factor == 0
