"""Rows → samples: one small file a format, found by a row's columns or named by `--data.format`."""

from openrlhf.datasets.formats.registry import FORMATS, Format, find_format

__all__ = ["FORMATS", "Format", "find_format"]
