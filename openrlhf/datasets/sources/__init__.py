"""Files → rows: finding the sources of a spec, reading them in blocks, mixing them."""

from openrlhf.datasets.sources.find import Source, open_sources

__all__ = ["Source", "open_sources"]
