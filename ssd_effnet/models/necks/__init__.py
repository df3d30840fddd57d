"""Necks: graphs between levels. Topologies are tables, run by one executor."""

from ssd_effnet.models.necks.graph import Fusion, GraphNeck
from ssd_effnet.models.necks.topologies import Node, Topology

__all__ = ["Fusion", "GraphNeck", "Node", "Topology"]
