"""For tests, ours and applications': a network that misbehaves when told."""

from edgeai.testing.proxy import FaultProxy, Line

__all__ = ["FaultProxy", "Line"]
