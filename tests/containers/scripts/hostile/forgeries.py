"""What a hostile worker says and asks for: the list that its script works through and that the test reads.

It knows more than a worker can know: names, level and uid of the task beside it, and what its controller's facts look like.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgeai.events.address import Address, Direction, EventClass
from edgeai.events.catalogue import (
    Absent,
    BlobRef,
    Desired,
    Event,
    Fetch,
    Heartbeat,
    HeldAtEdge,
    HeldInCloud,
    LogAnswered,
    LogRequested,
    Membership,
    ModelAtHand,
    NodeGone,
    Observed,
    Offer,
    Outcome,
    PhaseChanged,
    Progress,
    Pull,
    Receipt,
    Report,
    Role,
    RoundClosed,
    RoundPhase,
    RoundRecord,
    RoundState,
    ServiceEndpoint,
    TrainingCompleted,
    Usage,
    Verdict,
    WorkerEnded,
    WorkerFailed,
    WorkerObserved,
)
from edgeai.events.envelope import Chunk, Envelope, Header, encode, encode_chunk, stamped

DIGEST = "f" * 64
LATER = 2**62
"""An incarnation that stands over every true one."""
FORGED_ROUND = 700


@dataclass(frozen=True, slots=True)
class Task:
    """A task and one worker of it."""

    node: str
    level: str
    uid: str
    worker: str
    aggregation: str = "aggregation"


@dataclass(frozen=True, slots=True)
class Forgery:
    """One message. `token` is stamped on it if it is not empty."""

    topic: str
    payload: bytes
    token: bytes = b""
    retain: bool = False

    @property
    def sealed(self) -> bytes:
        return stamped(self.payload, self.token) if self.token else self.payload


def address_of(event: Event, to: Task, *, worker: str = "", task: str = "-", node: str = "") -> Address:
    level = to.level if task == "-" else task
    return Address(node or to.node, event.direction, event.event_class, event.kind, level, worker)


def said(name: str, event: Event, where: Address, source: str, *, sequence: int = 1) -> Forgery:
    """`name` travels in the envelope's subject, so that whoever meets the message knows which it is."""
    payload = encode(Envelope(Header(source, LATER, sequence), event, bytes(16), 0.0, name))
    return Forgery(where.topic(), payload, retain=event.event_class is EventClass.STATE)


def not_its_to_say(me: Task, other: Task) -> dict[str, Forgery]:
    """What the broker must keep to itself: nobody may ever meet one of these."""
    controller, aggregation = me.node, f"cloud/{other.level}/{other.aggregation}"
    record = RoundRecord(1, 1, {other.worker: 1}, {}, "", DIGEST, 1, {}, 0, 0, 0.0)
    gone = WorkerObserved(other.level, other.uid, other.worker, Role.TRAINING, 99, "Failed", "forged")
    of_worker = {"worker": other.worker}
    whole_node = {"task": "", "worker": ""}
    events: dict[str, tuple[Event, str, dict[str, str]]] = {
        "the failure of another worker": (WorkerFailed(other.uid, Role.TRAINING, "forged"), controller, of_worker),
        "the end of another worker": (WorkerEnded(other.uid, Role.TRAINING, True, "forged"), controller, of_worker),
        "the failure of another's aggregation": (
            WorkerFailed(other.uid, Role.AGGREGATION, "forged"),
            "cloud",
            {"worker": other.aggregation, "node": "cloud"},
        ),
        "the outcome of a round": (
            RoundClosed(other.uid, record),
            aggregation,
            {"worker": other.aggregation, "node": "cloud"},
        ),
        "the outcome of a round from its own node": (
            RoundClosed(other.uid, record),
            aggregation,
            {"worker": other.aggregation},
        ),
        "the end of a training": (TrainingCompleted(other.uid, DIGEST, 1, 9, {}), aggregation, {"node": "cloud"}),
        "the phase of a task": (PhaseChanged(other.uid, "Failed", "forged"), "cloud/coordinator", {"node": "cloud"}),
        "a fact of its own": (WorkerFailed(me.uid, Role.TRAINING, "forged"), controller, {"worker": me.worker}),
        "what its node runs": (Observed(LATER, (gone,)), controller, whole_node),
        "what its node is to run": (Desired(), "cloud/coordinator", whole_node),
        "what another node is to run": (Desired(), "cloud/coordinator", {**whole_node, "node": "edge2"}),
        "a round of another task": (
            RoundState(other.uid, 999, 1, RoundPhase.ENDED, (other.worker,)),
            aggregation,
            {},
        ),
        "a round of its own task": (RoundState(me.uid, 999, 1, RoundPhase.ENDED), aggregation, {"task": me.level}),
        "who takes part": (Membership(other.uid, (), {other.worker: "forged"}), "cloud/coordinator", {}),
        "where a service is": (ServiceEndpoint(other.uid, "s", me.node, me.worker), "cloud/coordinator", {}),
        "a receipt for its controller": (Receipt(controller, 1, LATER), "cloud/coordinator", whole_node),
        "a model at hand": (ModelAtHand(DIGEST, "/etc/passwd"), controller, {}),
        "that its node is lost": (NodeGone(), controller, whole_node),
        "that its node lives": (Heartbeat(1.0, 0), controller, whole_node),
        "what its controller holds": (HeldAtEdge(()), controller, whole_node),
        "what the cloud holds": (HeldInCloud(()), "cloud/coordinator", whole_node),
        "what another worker uses": (Usage(1.0, 1, 1, 1), controller, of_worker),
        "progress past its controller": (Progress(FORGED_ROUND, "training"), controller, of_worker),
        "a verdict for another worker": (
            Verdict(other.uid, 1, "offer", Outcome.REFUSED, DIGEST, "forged"),
            aggregation,
            of_worker,
        ),
        "a pull of another's update": (Pull(DIGEST, ((0, 1),)), aggregation, of_worker),
        "a fetch from the library": (Fetch(DIGEST, ((0, 1),)), controller, whole_node),
        "a fetch from another's aggregation": (Fetch(DIGEST, ((0, 1),)), controller, {}),
        "that a blob is absent": (Absent(DIGEST, "forged"), "cloud", whole_node),
        "a question for another's log": (LogRequested(0), "cloud/operator", of_worker),
        "another worker's log": (LogAnswered(0, 1, b"forged", True), controller, of_worker),
    }
    made = {
        name: said(name, event, address_of(event, other, **where), source)
        for name, (event, source, where) in events.items()
    }
    chunk = Address(me.node, Direction.DOWN, EventClass.TRANSFER, "chunk", other.level)
    made["a part of a model"] = Forgery(chunk.topic(), _chunk("a part of a model"))
    return made


def in_anothers_name(me: Task, other: Task, token: bytes) -> dict[str, Forgery]:
    """What workers may say, under the name of another, without a token, with the own one, and with one that was made up."""
    source = f"{other.node}/{other.level}/{other.worker}"
    made: dict[str, Forgery] = {}
    for number, (what, stamp) in enumerate(
        (("no token", b""), ("its own token", token), ("a made-up token", b"?" * 32))
    ):
        offer = Offer(other.uid, FORGED_ROUND + number, "", BlobRef(DIGEST, 1, b"x"), 1)
        now = replace(offer, number=1)
        held, report = HeldAtEdge(()), Report(other.uid, FORGED_ROUND + number, "")
        events = {"an update": offer, "an early update": now, "a report": report, "a list": held}
        for kind, event in events.items():
            name = f"{kind} with {what}"
            forged = said(name, event, address_of(event, other, worker=other.worker), source)
            made[name] = replace(forged, token=stamp)
        chunk = Address(other.node, Direction.UP, EventClass.TRANSFER, "chunk", other.level, other.worker)
        made[f"a part of an update with {what}"] = Forgery(chunk.topic(), _chunk("part"), stamp)
        progress = Progress(FORGED_ROUND + number, "training")
        to = Address(other.node, Direction.LOCAL, EventClass.SIGNAL, Progress.kind, other.level, other.worker)
        made[f"progress with {what}"] = replace(said("progress", progress, to, source), token=stamp)
    return made


def honest(me: Task, token: bytes) -> dict[str, Forgery]:
    """The same in its own name: this is heard, so the witnesses and the counters do see what is said."""
    source = f"{me.node}/{me.level}/{me.worker}"
    offer = Offer(me.uid, FORGED_ROUND, "", BlobRef(DIGEST, 1, b"x"), 1)
    to = Address(me.node, Direction.LOCAL, EventClass.SIGNAL, Progress.kind, me.level, me.worker)
    own = {
        "its own progress": said("its own progress", Progress(FORGED_ROUND, "validating"), to, source),
        "its own update": said("its own update", offer, address_of(offer, me, worker=me.worker), source),
    }
    return {name: replace(forged, token=token) for name, forged in own.items()}


def _chunk(source: str) -> bytes:
    return encode_chunk(Header(source.replace(" ", "-")), Chunk(DIGEST, 1, 0, memoryview(b"x")))


def raw(me: Task, other: Task) -> dict[str, Forgery]:
    """Topics that are no addresses, and addresses without sense."""
    return {
        "a topic of the broker": Forgery("$SYS/broker/uptime", b"forged"),
        "the API of a stream": Forgery("$JS/API/STREAM/LIST", b"{}"),
        "the deletion of a stream": Forgery("$JS/API/STREAM/DELETE/$MQTT_rmsgs", b"{}"),
        "the store of the broker": Forgery("$MQTT/sub/x", b"forged"),
        "a document of the cloud": Forgery("$KV/edgeai-resources/FederatedTask/honest", b"forged"),
        "an unknown topic": Forgery("elsewhere", b"forged", retain=True),
        "no event at all": Forgery(f"edgeai/1/{me.node}/up/transfer/offer/{other.level}/{other.worker}", b"\x00" * 100),
        "no event for its controller": Forgery(f"edgeai/1/{me.node}/local/signal/progress/{other.level}/x", b"\xff"),
        "a task with wildcards": Forgery(f"edgeai/1/{me.node}/up/transfer/offer/-/-", b"\xff" * 64),
    }


def readable(me: Task, other: Task) -> dict[str, list[str]]:
    """What it subscribes to in the hope of hearing more than its part."""
    node = f"edgeai/1/{me.node}"
    return {
        "everything": ["#", "+/#", "edgeai/#", "edgeai/1/+/+/+/+/+/+"],
        "what the broker says of itself": ["$SYS/#", "$JS/#", "$MQTT/#"],
        "what its node is to run": [f"{node}/down/state/desired/+/+"],
        "who takes part": [f"{node}/down/state/membership/+/+"],
        "where services are": [f"{node}/down/state/service/+/+"],
        "receipts": [f"{node}/down/state/receipt/+/+"],
        "models on their way": [f"{node}/down/transfer/chunk/+/+"],
        "questions to its controller": [f"{node}/down/request/+/+/+"],
        "what goes up": [f"{node}/up/#", f"{node}/up/+/+/+/+", f"{node}/up/transfer/+/{other.level}/{other.worker}"],
        "what others tell its controller": [f"{node}/local/signal/progress/+/+"],
        "another node": ["edgeai/1/edge2/down/+/+/+/+", "edgeai/1/cloud/+/+/+/+/+"],
        "what others share": [f"$share/x/{node}/up/+/+/+/+", f"$share/x/{node}/down/state/desired/+/+"],
    }


def readable_by_design(other: Task) -> dict[str, str]:
    """What the login that the workers of a node share does let them read of each other (docs/containers.md)."""
    down = f"edgeai/1/{other.node}/down"
    return {
        "rounds": f"{down}/state/round/{other.level}/-",
        "verdicts": f"{down}/transfer/verdict/{other.level}/{other.worker}",
        "pulls": f"{down}/transfer/pull/{other.level}/{other.worker}",
    }


WHOEVER = Task("edge1", "t-00000000", "0" * 32, "w")
