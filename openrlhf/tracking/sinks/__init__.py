"""Where records go: one small file a sink, behind one protocol. None loads its library before it is used."""

from openrlhf.tracking.sinks.sink import Sink

__all__ = ["Sink"]
