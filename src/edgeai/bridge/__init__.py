"""The service between the broker of an edge and the cloud."""

from edgeai.bridge.service import Bridge, Counters

__all__ = ["Bridge", "Counters"]
