"""Anchors at hand-computed places, on sizes that are not square."""

import math

import torch

from ssd_effnet.models.anchors import AnchorGenerator
from ssd_effnet.structures import Level

LEVELS = [Level("a", 1, 8), Level("b", 1, 16)]


def generator(sizes: tuple[float, ...] = (40.0, 80.0)) -> AnchorGenerator:
    return AnchorGenerator(LEVELS, sizes, (0.5, 1.0), (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (512, 640))


def test_places_and_shapes_by_hand() -> None:
    anchors = generator()([(64, 80), (32, 40)], (512, 640), torch.zeros(1))
    assert anchors.shape == (6 * (64 * 80 + 32 * 40), 4)
    # first position: ratio 1/2 first, at scales 1, 2^(1/3), 2^(2/3); width = 40 * sqrt(1/2), height = 40 / sqrt(1/2)
    w, h = 40 * math.sqrt(0.5), 40 / math.sqrt(0.5)
    expected = [[4, 4, w * k, h * k] for k in (1, 2 ** (1 / 3), 2 ** (2 / 3))]
    torch.testing.assert_close(anchors[:3], torch.tensor(expected))
    torch.testing.assert_close(anchors[3], torch.tensor([4.0, 4, 40, 40]))
    # second position of the first row lies to the right, the second row begins 80 positions later
    torch.testing.assert_close(anchors[6, :2], torch.tensor([12.0, 4]))
    torch.testing.assert_close(anchors[6 * 80, :2], torch.tensor([4.0, 12]))
    # second level: row 3, column 5
    there = anchors[6 * 64 * 80 + 6 * (3 * 40 + 5) + 3]
    torch.testing.assert_close(there, torch.tensor([5.5 * 16, 3.5 * 16, 80.0, 80.0]))


def test_anchors_follow_the_resolution() -> None:
    small = generator()([(64, 80), (32, 40)], (512, 640), torch.zeros(1))
    large = generator()([(64, 80), (32, 40)], (1024, 1280), torch.zeros(1))
    torch.testing.assert_close(large, 2 * small)
    wide = generator()([(64, 80), (32, 40)], (512, 1280), torch.zeros(1))
    torch.testing.assert_close(wide, small * torch.tensor([2.0, 1, 2, 1]))
