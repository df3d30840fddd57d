"""Necks: graphs between levels. Topologies are tables, run by one executor."""

from ssd_effnet.models.necks.graph import Fusion, GraphNeck
from ssd_effnet.models.necks.resampling import PooledLevels
from ssd_effnet.models.necks.topologies import (
    Node,
    Topology,
    bifpn,
    fpn,
    fully_connected,
    nas_fpn,
    panet,
    simplified_panet,
    study_fpn,
)
from ssd_effnet.registry import TOPOLOGIES

__all__ = [
    "TOPOLOGIES",
    "Fusion",
    "GraphNeck",
    "Node",
    "PooledLevels",
    "Topology",
    "bifpn",
    "fpn",
    "fully_connected",
    "nas_fpn",
    "panet",
    "simplified_panet",
    "study_fpn",
]
