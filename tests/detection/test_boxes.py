"""Box arithmetic against hand-computed values and its own inverse."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from ssd_effnet.detection.boxes import cxcywh_to_xyxy, decode, encode, intersection, iou, nms, xyxy_to_cxcywh


def test_overlaps_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 10, 10], [0, 0, 0, 0]])
    b = torch.tensor([[5.0, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 10]])
    assert intersection(a, b).tolist() == [[50, 0, 100], [0, 0, 0]]
    torch.testing.assert_close(iou(a, b), torch.tensor([[1 / 3, 0, 1], [0, 0, 0]]))


def test_encode_by_hand() -> None:
    anchor = torch.tensor([[50.0, 60, 20, 40]])
    box = torch.tensor([[54.0, 52, 40, 40]])
    # (4 / 20) / 0.1, (-8 / 40) / 0.1, ln 2 / 0.2, 0
    torch.testing.assert_close(encode(box, anchor), torch.tensor([[2.0, -2.0, math.log(2) / 0.2, 0.0]]))


positive = st.floats(1, 700)


@given(st.tuples(positive, positive, positive, positive), st.tuples(positive, positive, positive, positive))
def test_decode_undoes_encode(box: tuple[float, ...], anchor: tuple[float, ...]) -> None:
    boxes, anchors = torch.tensor([box], dtype=torch.float64), torch.tensor([anchor], dtype=torch.float64)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)


def test_decode_stays_finite() -> None:
    wild = torch.full((1, 4), 1e4)
    assert torch.isfinite(decode(wild, torch.tensor([[10.0, 10, 20, 40]]))).all()


def test_nms_of_an_exported_graph_is_nms() -> None:
    class Nms(torch.nn.Module):
        def forward(self, boxes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
            return nms(boxes, valid, 0.4, block=40)

    generator = torch.Generator().manual_seed(0)
    boxes = cxcywh_to_xyxy(torch.rand(2, 60, 4, generator=generator) * torch.tensor([60.0, 60, 40, 40]))
    valid = torch.rand(2, 60, generator=generator) > 0.2
    graph = torch.export.export(Nms(), (boxes, valid)).module()
    assert torch.equal(graph(boxes, valid), nms(boxes, valid, 0.4))
    # a chain, in which each box overlaps the next one: as many rounds as there are boxes
    chain = torch.tensor([[[4.0 * i, 0, 4 * i + 10, 10] for i in range(60)]]).repeat(2, 1, 1)
    everything = torch.ones(2, 60, dtype=torch.bool)
    every_second = [i % 2 == 0 for i in range(60)]
    assert graph(chain, everything).tolist() == nms(chain, everything, 0.4).tolist() == 2 * [every_second]


def test_nms_leaves_invalid_rows_out() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]]])
    assert nms(boxes, torch.tensor([[False, True, True]]), 0.5).tolist() == [[False, True, True]]
    assert nms(boxes[:, :0], torch.zeros(1, 0, dtype=torch.bool), 0.5).shape == (1, 0)
