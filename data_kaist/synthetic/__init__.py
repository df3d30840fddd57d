"""A synthetic twin of KAIST: painted street scenes in KAIST's layout, for trying things without the real data."""

from data_kaist.synthetic.writer import Report, RequestError, write_dataset

__all__ = ["Report", "RequestError", "write_dataset"]
