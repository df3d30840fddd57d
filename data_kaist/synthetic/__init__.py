"""Synthetic twin of KAIST: painted street scenes in KAIST's layout."""

from data_kaist.synthetic.writer import write_dataset

__all__ = ["write_dataset"]
