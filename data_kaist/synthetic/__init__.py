"""A synthetic twin of KAIST: painted street scenes in KAIST's layout, for trying things without the real data."""

from data_kaist.synthetic.writer import write_dataset

__all__ = ["write_dataset"]
