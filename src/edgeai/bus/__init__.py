"""How events travel: `base` is the contract, `memory`, `mqtt` and `nats` keep it, `embedded` starts brokers.

Implementations are imported by module, so that nobody loads a client that is not used.
"""

from edgeai.bus.base import Bus, Delivery

__all__ = ["Bus", "Delivery"]
