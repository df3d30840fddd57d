"""The check that any backbone can be run against: the project's own pass, each broken promise is named."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ssd_effnet.models.backbones import BACKBONES, Backbone
from ssd_effnet.models.backbones.check import ContractError, check_backbone
from ssd_effnet.structures import Level

QUICK = ("efficientnet-b0", "efficientnet-lite0")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Small(Backbone):
    """Two levels that keep every promise."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.a = nn.Conv2d(in_channels, 4, 3, 2, 1)
        self.b = nn.Conv2d(4, 6, 3, 2, 1)
        self.levels = [Level("a", 4, 2), Level("b", 6, 4)]
        self.segments = [["a"], ["b"]]


def changed(**attributes: object) -> Callable[..., Backbone]:
    def build(in_channels: int = 3) -> Backbone:
        backbone = Small(in_channels)
        for name, value in attributes.items():
            setattr(backbone, name, value)
        return backbone

    return build


class AnyModule(nn.Module):
    """No chain of modules: nothing but ``levels`` and ``forward``."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.a = nn.Conv2d(in_channels, 4, 3, 2, 1)
        self.b = nn.Conv2d(4, 6, 3, 2, 1)
        self.levels = [Level("a", 4, 2), Level("b", 6, 4)]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shallow = self.a(images)
        return shallow, self.b(shallow)


class TwoOfThree(AnyModule):
    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(in_channels)
        self.levels = [*self.levels, Level("c", 8, 8)]


class Miscut(Small):
    def cut(self, start: int = 0, stop: int | None = None) -> "Miscut":
        part = super().cut(start, stop)
        for weights in part.parameters():
            weights.data.zero_()
        return part


class OfTheBatch(Small):
    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(in_channels)
        self.b = nn.Sequential(self.b, nn.BatchNorm2d(6, track_running_stats=False))


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in BACKBONES if "*" not in n]
)
def test_the_projects_own_keep_every_promise(name: str) -> None:
    assert isinstance(check_backbone(BACKBONES[name]), Backbone)


class Even(Small):
    """Two maps of one stride."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(in_channels)
        self.b = nn.Conv2d(4, 6, 3, 1, 1)
        self.levels = [Level("a", 4, 2), Level("b", 6, 2)]


@pytest.mark.parametrize("kind", [AnyModule, Small, Even])
def test_any_module_with_levels_and_forward_passes(kind: type[nn.Module]) -> None:
    assert isinstance(check_backbone(kind), kind)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda in_channels: len, "builtin_function_or_method should be a torch module"),
        (lambda in_channels: nn.Conv2d(in_channels, 4, 3), r"Conv2d\.levels is empty"),
        (TwoOfThree, "returns 2 maps for 3 levels"),
        (changed(levels=[Level("b", 6, 4), Level("a", 4, 2)]), r"from shallow to deep, not by strides \[4, 2\]"),
        (changed(levels=[Level("a", 4, 2), Level("b", 8, 4)]), r"level b gives \(2, 6, 16, 24\).* \(2, 8, 16, 24\)"),
        (changed(b=nn.Conv2d(4, 6, 3, 2)), r"level b gives \(2, 6, 15, 23\) for an image of 64x96.* rounded up"),
        (changed(head=nn.Linear(6, 2)), r"no level depends on head\.weight.*classifier"),
        (OfTheBatch, "level b of an image depends on the rest of its batch"),
        (Miscut, "cut at a level, it gives other maps than whole"),
    ],
)
def test_a_broken_promise_is_one_sentence(build: Callable[..., Backbone], says: str) -> None:
    with pytest.raises(ContractError, match=says) as caught:
        check_backbone(build)
    assert "\n" not in str(caught.value)
