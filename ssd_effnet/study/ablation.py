"""Ablation: the last experiment of a chain without each of its steps.

    files, left_out = write_without(Path("experiments/08_bifpn.yaml"), Path("runs/without/experiments"))

Each file is a difference from the last experiment, so that plan, runs and report are those of any study.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from data_kaist.errors import Failure
from data_kaist.files import write_whole
from ssd_effnet.build import build_skeleton
from ssd_effnet.config.keys import settings
from ssd_effnet.config.loading import as_difference, differences, find_experiment, layers_of, load_experiment

WITHOUT = "_without_"  # between the names of the last experiment and of the step


class Step(NamedTuple):
    """A difference between two experiments of a chain that follow each other."""

    name: str
    before: dict[str, Any]
    after: dict[str, Any]

    def undone(self, now: dict[str, Any]) -> dict[str, Any]:
        """Values before this step, of keys that still have its value."""
        still = (key for key in self.keys & self.before.keys() if now.get(key) == self.after.get(key))
        return {key: self.before[key] for key in still}

    @property
    def keys(self) -> set[str]:
        """Keys that this step changes."""
        return {key for key in self.before.keys() | self.after.keys() if self.before.get(key) != self.after.get(key)}


def steps(final: Path) -> list[Step]:
    """The steps that lead to an experiment, the first one first."""
    chain = [load_experiment(path) for path, _ in reversed(layers_of(final))]
    return [Step(here.name, settings(parent), settings(here)) for parent, here in pairwise(chain)]


def write_without(final: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Write the last experiment minus each step of its chain.

    A step's keys go back to their value before it where the last experiment still has the step's own. Where later
    steps have changed all of them since, the step goes together with these. Returns the files, and a sentence for each
    step that cannot be taken away.
    """
    last, chain = load_experiment(final), steps(final)
    now, files, left_out = settings(last), [], []
    known: dict[str, dict[str, Any]] = {}
    base = find_experiment(final).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for place, step in enumerate(chain):
        taken, back = [step], step.undone(now)
        if not back:
            taken += [other for other in chain[place + 1 :] if other.keys & step.keys]
            for of in reversed(taken):
                back |= of.undone(now | back)
        name = f"{last.name}{WITHOUT}" + "_and_".join(of.name for of in taken)
        changed = {key: value for key, value in back.items() if now.get(key) != value}
        twin = next((other for other, keys in known.items() if keys == changed), None)
        if not changed or twin:
            left_out.append(f"{step.name}: without it the network is {f'that of {twin}' if twin else 'the same'}")
            continue
        file = folder / f"{name}.yaml"
        write_whole(file, _experiment_text(base, last.name, taken, changed, sorted(changed)))
        try:
            build_skeleton(experiment := load_experiment(file))
            write_whole(file, _experiment_text(base, last.name, taken, changed, differences(experiment, last)))
        except (Failure, ValueError) as error:
            file.unlink()
            left_out.append(f"{step.name}: without it there is no network ({error})")
            continue
        known[name] = changed
        files.append(file)
    return files, left_out


def _experiment_text(base: Path, last: str, taken: list[Step], changed: dict[str, Any], keys: list[str]) -> str:
    names = " and ".join(step.name for step in taken)
    asked = f"What does {last} lose without {names}? Changes together: {', '.join(keys)}: keys of what is taken away."
    return as_difference(str(base), asked, keys, dict(sorted(changed.items())))
