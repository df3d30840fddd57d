"""Samples the people of a frame and their places on the street."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data_kaist.synthetic.canvas import Camera
from data_kaist.synthetic.clutter import Obstacle
from data_kaist.synthetic.conditions import Conditions
from data_kaist.synthetic.figures import Person

# KAIST's people at 512 rows: most between 40 and 150 pixels tall.
MEDIAN_HEIGHT = 74.0
HEIGHT_SPREAD = 0.44
HEIGHT_LIMITS = (24.0, 230.0)
REFERENCE_ROWS = 512.0
EMPTY_SHARE = 0.25


@dataclass(frozen=True)
class Figure:
    """One body to paint."""

    owner: int  # index of the annotated object that it belongs to (the members of a group share one)
    person: Person  # looks and pose
    cyclist: bool  # on a bicycle
    x: float  # where it stands, metres
    z: float


@dataclass(frozen=True)
class FramePlan:
    """The figures of a frame, and the label of each owner index."""

    figures: list[Figure]
    labels: list[str]


class _Crowd:
    """Collects figures that overlap neither furniture nor each other."""

    def __init__(
        self, rng: np.random.Generator, look: Conditions, camera: Camera, depth: np.ndarray, obstacles: list[Obstacle]
    ) -> None:
        self.rng, self.look, self.camera, self.depth, self.obstacles = rng, look, camera, depth, obstacles
        self.width = depth.shape[1]
        self.figures: list[Figure] = []
        self.labels: list[str] = []

    def is_free(self, x: float, z: float, apart: float) -> bool:
        left, right = self.look.walls
        if not (-left + 0.5 < x < right - 0.5 and z < self.look.end):
            return False
        if any(obstacle.holds(x, z) for obstacle in self.obstacles):
            return False
        return all(abs(f.x - x) > apart or abs(f.z - z) > 0.5 for f in self.figures)

    def is_behind(self, x: float, z: float) -> bool:
        """Whether street furniture hides the waist of a person at ``(x, z)``."""
        u, v = self.camera.project(np.array([[x, 0.9, z]]))[0]
        rows, columns = self.depth.shape
        return bool(0 <= v < rows and 0 <= u < columns and self.depth[int(v), int(u)] < z)

    def spot(self, height_limits: tuple[float, float]) -> tuple[float, float] | None:
        """A free place for a figure of KAIST's heights. Limits are in pixels at 512 rows."""
        rng, camera = self.rng, self.camera
        unit = camera.focal / (1.37 * REFERENCE_ROWS)
        for _ in range(12):
            pixels = float(np.exp(rng.normal(np.log(MEDIAN_HEIGHT), HEIGHT_SPREAD)))
            if not height_limits[0] <= pixels <= height_limits[1]:
                pixels = float(rng.uniform(height_limits[0], min(height_limits[1], 1.6 * height_limits[0])))
            z = camera.focal * 1.68 / (pixels * unit)
            if rng.random() < 0.55:
                side = -1.0 if rng.random() < 0.5 else 1.0
                x = side * float(rng.uniform(self.look.road_half - 0.3, self.look.road_half + 4.0))
                column = camera.centre_x + x * camera.focal / z
                if not 0.0 < column < self.width:
                    continue
            else:
                column = float(rng.uniform(-0.01, 1.01)) * self.width
                x = (column - camera.centre_x) * z / camera.focal
            if self.is_free(x, z, 0.45) and (not self.is_behind(x, z) or rng.random() < 0.3):
                return x, z
        return None

    def person(self) -> Person:
        return Person.sample(self.rng, self.look.clothing)

    def add(self, owner: int, x: float, z: float, person: Person, cyclist: bool = False) -> None:
        self.figures.append(Figure(owner, person, cyclist, x, z))

    def object(self, label: str) -> int:
        self.labels.append(label)
        return len(self.labels) - 1


def plan_frame(
    rng: np.random.Generator,
    look: Conditions,
    camera: Camera,
    depth: np.ndarray,
    obstacles: list[Obstacle],
    *,
    empty: bool,
) -> FramePlan:
    """Draw the people of one frame. ``depth`` is float32 ``(H, W)``, metres to the furniture."""
    crowd = _Crowd(rng, look, camera, depth, obstacles)
    count = 0 if empty else min(1 + int(rng.poisson(look.crowd)), max(9, int(2.5 * look.crowd)))
    while count > 0:
        count -= 1
        kind = float(rng.random())
        if kind < 0.075:
            _add_group(crowd)
            continue
        label = "cyclist" if kind < 0.135 else "person?" if kind < 0.16 else "person"
        place = crowd.spot((HEIGHT_LIMITS[0] * 0.8, 48.0) if label == "person?" else HEIGHT_LIMITS)
        if place is None:
            continue
        first = crowd.person()
        crowd.add(crowd.object(label), *place, first, cyclist=label == "cyclist")
        if label == "person" and rng.random() < look.company:
            # Friends walk side by side, which is how people come to hide each other.
            x = place[0] + float(rng.choice([-1, 1]) * rng.uniform(0.35, 0.85))
            z = place[1] + float(rng.uniform(-0.5, 0.5))
            if crowd.is_free(x, z, 0.3):
                turned = replace(crowd.person(), view=first.view + float(rng.normal(0, 0.2)))
                crowd.add(crowd.object("person"), x, z, turned)
                count -= 1
    return FramePlan(crowd.figures, crowd.labels)


def _add_group(crowd: _Crowd) -> None:
    """Three to six people far off who are annotated with one box."""
    rng = crowd.rng
    place = crowd.spot((26.0, 70.0))
    if place is None:
        return
    members, x = [], place[0]
    for _ in range(int(rng.integers(3, 7))):
        z = place[1] + float(rng.uniform(-0.8, 0.8))
        if crowd.is_free(x, z, 0.2):
            members.append((x, z))
        x += float(rng.uniform(0.3, 0.55))
    if len(members) < 2:
        return
    owner = crowd.object("people")
    for x, z in members:
        crowd.add(owner, x, z, crowd.person())
