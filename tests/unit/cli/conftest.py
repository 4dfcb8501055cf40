"""The command line on a cloud without a broker: stores in memory, every command in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.cli import main
from edgeai.client import Cloud
from edgeai.errors import WaitTimeout
from edgeai.events.catalogue import HealthAnswered, Heartbeat, NodeHealth
from edgeai.resources.base import Resource
from edgeai.resources.kinds import from_document
from edgeai.store.memory import MemoryBlobStore, MemoryFactStream, MemoryResourceStore


@dataclass(frozen=True)
class Said:
    """What a command left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


def heard_of(node: str) -> NodeHealth:
    return NodeHealth(node, heartbeat=Heartbeat(100.0, 0, 0.002), heartbeat_age_s=1.0)


class Console:
    """Runs commands. `resources`, `blobs` and `facts` are what the cloud holds, `health` what its coordinator answers.

    By default all nodes of the documents are well; None: nobody answers.
    """

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.resources, self.blobs, self.facts = MemoryResourceStore(), MemoryBlobStore(), MemoryFactStream()
        self.health: HealthAnswered | None = HealthAnswered(tuple(map(heard_of, ("cloud", "edge1", "edge2"))))
        self.asked = 0

    async def answer(self, node: str = "", *, timeout_s: float = 1.0) -> HealthAnswered:
        self.asked += 1
        if self.health is None:
            raise WaitTimeout(f"the coordinator did not answer within {timeout_s:g} s")
        return self.health

    def __call__(self, *arguments: str) -> Said:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = self._capsys.readouterr()
        assert "Traceback" not in said.err
        return Said(int(ended.value.code or 0), said.out, said.err)

    @asynccontextmanager
    async def connected(self, **_options: Any) -> AsyncIterator[Cloud]:
        async with MemoryBus(MemoryBroker()) as bus:
            cloud = Cloud(bus, self.resources, self.blobs, self.facts)
            cloud.health = self.answer  # type: ignore[method-assign]
            yield cloud

    async def put(self, document: dict[str, Any]) -> Resource:
        """Store a document as the cloud would have it."""
        resource = from_document(document)
        await self.resources.create(resource.kind, resource.name, resource.to_document())
        return resource


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Console:
    made = Console(capsys)
    monkeypatch.setattr("edgeai.cli.connection.connect", made.connected)
    monkeypatch.setenv("EDGEAI_CONTEXT", str(tmp_path / "context.json"))
    return made
