"""The other end of a worker's session, played by a test: round documents go out, what the worker says is recorded.

`slot_of` makes a slot directory as a controller does. `Scripted` opens and closes rounds as an aggregation worker does,
answers lists of documents, and gives the verdicts that the test wants. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgeai.bus.base import Bus
from edgeai.bus.credentials import write_credentials_file
from edgeai.events import arrays
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import (
    Assignment,
    BlobRef,
    Event,
    HeldAtEdge,
    ModelAtHand,
    Offer,
    Outcome,
    Pull,
    Role,
    RoundPhase,
    RoundState,
    Verdict,
)
from edgeai.events.envelope import Envelope, Header, decode, decode_chunk, encode
from edgeai.launcher.slots import SlotDir, SlotFile
from edgeai.store.arrays import write_arrays
from edgeai.store.documents import Documents, MemoryDocuments
from edgeai.store.files import digest_bytes
from edgeai.store.transfers import Receiver
from edgeai.worker.environment import WorkerEnvironment

UID = "0123abcd" * 4
TASK, WORKER = "digits-0123abcd", "work0"
PATIENCE_S = 20.0
E = TypeVar("E", bound=Event)
Weights = list[np.ndarray[Any, Any]]


def weights(value: float = 0.0, *, size: int = 3) -> Weights:
    """Two arrays that stand for a model."""
    return [np.full((2, size), value, "float32"), np.full(size, value, "float64")]


def model_ref(model: Weights) -> BlobRef:
    blob = arrays.encode(model)
    return BlobRef(digest_bytes(blob), len(blob), blob)


def slot_of(folder: Path, node: str, *, dataset_path: str = "", **parameters: Any) -> SlotDir:
    slot = SlotDir(folder)
    slot.create()
    assignment = Assignment(
        TASK, "digits", UID, 1, WORKER, Role.TRAINING, dataset="dataset0" if dataset_path else "", parameters=parameters
    )
    slot.write_slot(SlotFile(node, assignment, dataset_path))
    return slot


def environment_of(slot: SlotDir, bus_url: str) -> dict[str, str]:
    """The variables of the worker of a slot, with a credentials file beside it."""
    credentials = slot.path.with_suffix(".credentials.json")
    write_credentials_file(credentials, bus_url, "worker", "secret")
    return {
        "EDGEAI_TASK": TASK,
        "EDGEAI_WORKER": WORKER,
        "EDGEAI_NODE": slot.read_slot().node,
        "EDGEAI_BUS": bus_url,
        "EDGEAI_CREDENTIALS_FILE": str(credentials),
        "EDGEAI_SLOT_DIR": str(slot.path),
    }


def worker_environment(slot: SlotDir) -> WorkerEnvironment:
    return WorkerEnvironment(TASK, WORKER, slot.read_slot().node, "mqtt://127.0.0.1:1", "", slot)


async def until(true: Callable[[], Any]) -> None:
    """Wait for a condition that no event announces."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.005)


class Scripted:
    """Made by `scripted`. `heard`: every event of the worker, in order of arrival."""

    def __init__(self, bus: Bus, slot: SlotDir, folder: Path) -> None:
        self.node, self._bus, self._slot = slot.read_slot().node, bus, slot
        self.heard: list[Event] = []
        self._read: dict[type[Event], int] = {}
        self._news = asyncio.Event()
        self._documents = Documents(MemoryDocuments(), bus, f"cloud/{TASK}/aggregation")
        self.receiver = Receiver(folder, retry_s=0.5)
        self._folder = folder

    # --- what it says

    async def open(
        self,
        number: int,
        model: Weights | BlobRef | None,
        *,
        asked: Sequence[str] = (WORKER,),
        attempt: int = 1,
        **more: Any,
    ) -> RoundState:
        """Open a round with a model that travels inline, or with a reference to one that does not."""
        ref = model_ref(model) if isinstance(model, list) else model
        state = RoundState(
            UID, number, attempt, RoundPhase.OPEN, tuple(asked), model=ref, **{"deadline_s": 300.0, **more}
        )
        await self.publish(state)
        return state

    async def close(self, number: int, *, attempt: int = 1) -> None:
        await self.publish(RoundState(UID, number, attempt, RoundPhase.CLOSED))

    async def end(self) -> None:
        await self.publish(RoundState(UID, 99, 1, RoundPhase.ENDED))

    async def publish(self, state: RoundState) -> None:
        address = Address(self.node, Direction.DOWN, EventClass.STATE, RoundState.kind, TASK)
        await self._documents.publish(address, state)

    def lose_everything(self) -> None:
        """From here on it is one whose store was lost: another incarnation, and no generation is known."""
        self._documents = Documents(MemoryDocuments(), self._bus, f"cloud/{TASK}/aggregation")

    async def place_model(self, model: Weights) -> BlobRef:
        """Put a model into the slot directory and say so, as a controller does."""
        beside = self._slot.path / "models" / "next.safetensors"
        digest, size_bytes = await asyncio.to_thread(write_arrays, beside, model)
        beside.replace(self._slot.model(digest))
        here = Address(self.node, Direction.LOCAL, EventClass.STATE, ModelAtHand.kind, TASK)
        await self.send(here, ModelAtHand(digest, str(self._slot.model(digest))))
        return BlobRef(digest, size_bytes)

    async def tell(self, offer: Offer, outcome: Outcome, reason: str = "", **changed: Any) -> None:
        fields = {"task_uid": UID, "number": offer.number, "digest": offer.blob.digest, **changed}
        await self.send(self._down(Verdict), Verdict(of="offer", outcome=outcome, reason=reason, **fields))

    async def settle_report(self, number: int, outcome: Outcome = Outcome.COUNTED) -> None:
        await self.send(self._down(Verdict), Verdict(UID, number, "report", outcome))

    async def settle_abstention(self, number: int) -> None:
        await self.send(self._down(Verdict), Verdict(UID, number, "abstention", Outcome.COUNTED))

    async def pull(self, offer: Offer) -> Path:
        """Have the blob of an offer as a file."""

        async def ask(ranges: tuple[tuple[int, int], ...]) -> None:
            await self.send(self._down(Pull), Pull(offer.blob.digest, ranges))

        target = self._folder / f"{offer.blob.digest}.safetensors"
        async with asyncio.timeout(PATIENCE_S):
            await self.receiver.fetch(offer.blob.digest, offer.blob.size_bytes, ask, target)
        return target

    async def send(self, address: Address, event: Event) -> None:
        await self._bus.publish(address, encode(Envelope(Header(f"cloud/{TASK}/aggregation"), event)))

    def _down(self, event: type[Event]) -> Address:
        return Address(self.node, Direction.DOWN, EventClass.TRANSFER, event.kind, TASK, WORKER)

    # --- what it hears

    async def next(self, kind: type[E]) -> E:
        """The next event of this kind, in order of arrival."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for index in range(self._read.get(kind, 0), len(self.heard)):
                    event = self.heard[index]
                    if isinstance(event, kind):
                        self._read[kind] = index + 1
                        return event
                self._news.clear()
                await self._news.wait()

    async def offer_of(self, number: int) -> Offer:
        """The next offer for this round: those of others may be repeated meanwhile."""
        while (offer := await self.next(Offer)).number != number:
            pass
        return offer

    def forget(self) -> None:
        """Listen only to what comes from now on."""
        self.heard.clear()
        self._read.clear()

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.heard)

    async def listen(self, ready: asyncio.Event) -> None:
        said = Pattern(self.node, Direction.UP, None, None, TASK, WORKER)
        to_the_controller = Pattern(self.node, Direction.LOCAL, EventClass.SIGNAL, None, TASK, WORKER)
        async with self._bus.subscribe(said, to_the_controller) as deliveries:
            ready.set()
            async for delivery in deliveries:
                if delivery.address.kind == "chunk":
                    self.receiver.arrived(decode_chunk(delivery.payload)[1])
                    continue
                event = decode(delivery.payload).event
                if isinstance(event, HeldAtEdge):
                    await self._documents.resend(delivery.address, event.documents)
                self.heard.append(event)
                self._news.set()


@asynccontextmanager
async def scripted(bus: Bus, slot: SlotDir, folder: Path) -> AsyncIterator[Scripted]:
    side = Scripted(bus, slot, folder)
    folder.mkdir(exist_ok=True)
    async with bus:
        await bus.wait_connected(PATIENCE_S)
        ready = asyncio.Event()
        listening = asyncio.create_task(side.listen(ready))
        await ready.wait()
        try:
            yield side
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


def decoded(offer: Offer) -> Weights:
    assert offer.blob.inline is not None
    return arrays.decode(offer.blob.inline)
