"""EdgeNode: a machine that runs a controller. Nodes register themselves; nobody needs to write this manifest."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgeai.resources.base import Count, Instant, Part, Resource
from edgeai.resources.conditions import Conditions, ConditionType, find_condition


class EdgeNodeSpec(Part):
    pass


class EdgeNodeStatus(Part):
    """`versions` by program (edgeai, python, ...); `address` is for people."""

    conditions: Conditions = ()
    observed_generation: Count = 0
    last_seen: Instant | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    address: str = ""

    @property
    def ready(self) -> bool:
        condition = find_condition(self.conditions, ConditionType.READY)
        return condition is not None and condition.status == "True"


class EdgeNode(Resource):
    kind: Literal["EdgeNode"] = "EdgeNode"
    spec: EdgeNodeSpec = EdgeNodeSpec()
    status: EdgeNodeStatus = EdgeNodeStatus()
