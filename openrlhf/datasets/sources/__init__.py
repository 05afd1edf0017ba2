"""Files → rows: finding what a spec means, reading it in blocks, mixing several sources."""

from openrlhf.datasets.sources.find import Source, open_sources

__all__ = ["Source", "open_sources"]
