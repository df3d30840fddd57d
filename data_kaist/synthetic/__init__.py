"""A synthetic twin of KAIST: painted street scenes in KAIST's layout, for trying things without the real data."""

from data_kaist.synthetic.writer import Report, SyntheticRequestError, write_dataset

__all__ = ["Report", "SyntheticRequestError", "write_dataset"]
