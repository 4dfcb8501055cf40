"""Joint inference services, and what their nodes say of them, for the tests of this folder."""

from __future__ import annotations

from typing import Any

from coordinator_world import NOW, UID, World
from job_world import models, version

from edgeai.events.address import CLOUD, Address
from edgeai.events.catalogue import InferenceObserved, Inferences, Inferring, Observed, Role, WorkerObserved
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.resources.joint import JointInferenceService

NAME = "digits"
LEVEL = f"{NAME}-{UID[:8]}"
FIRST, SECOND = f"{1:064x}", f"{2:064x}"
MODELS = models(version(1), name="small") | models(version(1), version(2), name="big")


def service(uid: str = UID, edges: int = 2, **changes: Any) -> JointInferenceService:
    """`changes`: `deleted`, `annotations`, `generation`, `status`, `replicas`, `policy`, `edge` and `cloud` (of workers)."""
    metadata: dict[str, Any] = {"name": NAME, "uid": uid, "generation": changes.get("generation", 1)}
    metadata["annotations"] = changes.get("annotations", {})
    if changes.get("deleted"):
        metadata["deletionTimestamp"] = NOW
    spec = {"scriptDir": "/srv/joint", "scriptBootFile": "main.py", "frameworkType": "numpy"}
    little = [
        {"name": f"little{number}", "nodeName": f"edge{number}", "model": {"name": "small"}, "workerSpec": spec}
        for number in range(edges)
    ]
    little[0] |= changes.get("edge", {})
    big = {"name": "big", "model": {"name": "big"}, "workerSpec": spec} | changes.get("cloud", {})
    big["replicas"] = changes.get("replicas", {"min": 1, "max": 4})
    found = {"edgeWorkers": little, "cloudWorker": big, "policy": changes.get("policy", {})}
    return JointInferenceService.from_document(
        {
            "kind": "JointInferenceService",
            "metadata": metadata,
            "spec": found,
            "status": changes.get("status", {}),
        }
    )


def worker(name: str, state: str = "Running") -> WorkerObserved:
    return WorkerObserved(LEVEL, UID, name, Role.CLOUD if name.startswith("big") else Role.EDGE, 1, state)


def infers(name: str, digest: str = FIRST, **counts: int) -> InferenceObserved:
    return InferenceObserved(LEVEL, UID, name, digest, Inferences(**counts), {digest: counts.get("inferences", 0)})


async def says(made: World, node: str, generation: int, *workers: str, taken: int = 0, **counts: int) -> None:
    """A node runs these workers, and they serve."""
    found = tuple(worker(name) for name in workers)
    inference = tuple(infers(name, **counts) for name in workers)
    await made.send(node, Observed(taken, found, inference=inference), generation)


async def busy(made: World, name: str, waiting: int, share: float, node: str = CLOUD) -> None:
    """A replica tells its load, as its controller passes it on."""
    told = Inferring(SECOND, Inferences(), waiting=waiting, busy=share)
    address = Address(node, told.direction, told.event_class, told.kind, LEVEL, name)
    await made.bus.publish(address, encode(Envelope(Header(node), told)))
