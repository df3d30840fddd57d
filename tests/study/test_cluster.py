"""A study on Ray: the same runs in the same directories, tried again where a worker dies."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssd_effnet.config.loading import ConfigError, load_experiment
from ssd_effnet.study.cluster import ENVIRONMENT, _needs, _refuse_what_fits_no_node, execute_on_ray
from ssd_effnet.study.execute import _visible
from ssd_effnet.study.plan import plan
from ssd_effnet.training.devices import Processes
from ssd_effnet.training.run_directory import RunDirectory, RunError, State

ROOT = Path(__file__).parents[2]
LITE0 = ROOT / "experiments" / "lite0.yaml"
SMALL = (
    *("input.size=[96,128]", "backbone.pretrained=none", "backbone.norm=batch", "adapter.channels=32"),
    *("extras.channels=32", "trainer.batch_size=4", "trainer.panel_images=0", "data.workers=0"),
    *("trainer.accelerator=cpu", "schedule.warmup_steps=0"),
)


def test_without_ray_a_sentence_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"needs Ray: pip install '\.\[cluster\]'"):
        execute_on_ray(plan([LITE0], [0], [], tmp_path))


def test_a_run_asks_for_its_devices_and_what_feeds_them(tmp_path: Path) -> None:
    overrides = ["trainer.devices=2", "data.workers=3", "trainer.threads=5"]
    (job,) = plan([LITE0], [0], overrides, tmp_path)
    assert _needs(job, gpus=True) == {"num_gpus": 2, "num_cpus": 8}
    assert _needs(job, gpus=False) == {"num_gpus": 0, "num_cpus": 10}
    (alone,) = plan([LITE0], [0], ["trainer.accelerator=cpu"], tmp_path)
    assert _needs(alone, gpus=True) == {"num_gpus": 0, "num_cpus": 1}
    needs = [_needs(job, gpus=True)]
    _refuse_what_fits_no_node([job], needs, [{"CPU": 2.0}, {"GPU": 2.0, "CPU": 8.0}])
    with pytest.raises(RunError, match=r"lite0 seed 0 asks for 2 GPUs and 8 CPUs .* have 1 GPUs, 64 CPUs; "):
        _refuse_what_fits_no_node([job], needs, [{"GPU": 1.0, "CPU": 64.0}, {"CPU": 64.0}])


def test_a_run_over_several_machines_is_no_part_of_a_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lite0: key `trainer\.num_nodes`"):
        plan([LITE0], [0], ["trainer.num_nodes=2"], tmp_path)


def test_a_run_on_ray_is_none_of_the_processes_that_slurm_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    e = load_experiment(LITE0)
    for name, value in {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_JOB_NAME": "ray"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        Processes.of(e)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert Processes.of(e) == Processes(0, 1)


def test_a_stale_address_ends_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rpc(Exception):
        """As gRPC's: nobody's kind."""

    def init(**_: object) -> None:
        raise Rpc("failed to connect\n  to all addresses")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:1")  # where nobody listens; Ray would try for two minutes
    with pytest.raises(RunError, match=r"no Ray cluster at ray://127\.0\.0\.1:1 \(RAY_ADDRESS; .*refused"):
        execute_on_ray(plan([LITE0], [0], [], tmp_path))
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(RunError, match=r"no Ray cluster at auto: failed to connect$"):
        execute_on_ray(plan([LITE0], [0], [], tmp_path), address="auto")


def test_a_worker_keeps_its_own_python_path() -> None:
    assert ENVIRONMENT["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "${PYTHONPATH}"]  # Ray puts in the worker's


def test_each_slot_of_one_machine_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [_visible(slot, 4, 1) for slot in range(5)] == ["0", "1", "2", "3", "0"]
    assert [_visible(slot, 4, 2) for slot in range(2)] == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert _visible(1, 2, 1) == "5"


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_run_goes_on(synthetic: Path, tmp_path: Path) -> None:
    """Two workers on this machine, one run each; one is killed in the middle."""
    pytest.importorskip("ray")
    settings = (*SMALL, f"data.root={synthetic}", "trainer.epochs=8")
    script = [sys.executable, str(ROOT / "scripts" / "study.py")]
    command = [*script, "run", str(LITE0), "--seeds", "0", "1", "--executor", "ray", *settings, f"--out={tmp_path}"]
    killed, other = (RunDirectory(tmp_path / "lite0" / f"seed{seed}") for seed in (0, 1))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as study:
        while killed.epochs_done() < 2 or not other.epochs_done():
            time.sleep(0.2)
            assert study.poll() is None, study.communicate()[0]
        os.kill(_processes_of(killed)[0], signal.SIGKILL)
        said, _ = study.communicate(timeout=400)
    assert study.returncode == 0, said
    assert len(_processes_of(killed)) == 2 and len(_processes_of(other)) == 1
    assert len(killed.environment()["resumed"]) == 1 and "resumed" not in other.environment()
    for directory in (killed, other):
        assert directory.state is State.FINISHED
        assert [row["epoch"] for row in directory.metrics()] == list(range(8))
    assert said.count(": begins") == 2 and said.count(": finished") == 2, said

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and "2 finished, 0 to do" in again.stdout, again.stderr


def _processes_of(directory: RunDirectory) -> list[int]:
    """Ids of the processes that have worked on a run, as its log says."""
    log = directory.log_file.read_text()
    return [int(number) for number in re.findall(r"^\S+ \S+ on \S+, process (\d+)$", log, re.M)]
