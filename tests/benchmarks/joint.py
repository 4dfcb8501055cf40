"""What joint inference costs, beside plain HTTP as one would write it by hand, in the same run on the same machine.

    python tests/benchmarks/joint.py [--seconds 5] [--rounds 3] [--json FILE] [--write docs/joint-inference.md]

It starts a whole system (cloud, edge with its broker and bridge, an edge worker, a cloud worker, all as processes) and, beside
it, the two servers of `joint_scripts/by_hand.py` (uvicorn, httpx, lists in JSON). Predict does next to nothing in all of them,
so that what is measured is the way. In each round they take turns, each measure for `--seconds`:

*   answers of the edge, one after the other, in the worker's own script: what `task.infer` takes beside the bare predict; and
    from outside, over MQTT and over the HTTP gateway;
*   answers of the cloud, asked for at an even rate in the script of the edge (open loop: a question's time counts from when it
    was due);
*   as many answers of the cloud per second as there can be, with so many questions on their way at once;
*   the CPU of all processes meanwhile.

Shown are medians over the rounds. At the end the digits of `edgeai demo --feature joint-inference`: how much of the accuracy
between the small and the big model is won by sending the hardest fifth, and whether that is ever worse than a random fifth.

Ends with 1 if a question failed, or was not answered by whom it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import platform
import socket
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from edgeai.asking import Edge, connect_edge
from edgeai.cli.playground import Playground
from edgeai.client import Cloud
from edgeai.events.address import task_level
from edgeai.gateway import gateway_url
from edgeai.launcher.slots import SlotDir
from edgeai.resources.base import Resource
from edgeai.resources.joint import JointInferenceService
from edgeai.resources.kinds import from_document
from edgeai.resources.manifest import load_manifests
from edgeai.settings import shipped

HERE = Path(__file__).parent
SCRIPTS = HERE / "joint_scripts"
sys.path.append(str(SCRIPTS))

from asking import PATIENCE_S, WARM_UP_S, Found, Wanted, asked, write  # noqa: E402

API, EDGE, SERVICE = "edgeai.io/v1alpha1", "edge1", "measured"
LITTLE, BIG = "little", "big"
READY_S, PATIENT_S = 60.0, 60.0
BEGIN, END = "<!-- figures: tests/benchmarks/joint.py -->", "<!-- end of figures -->"
DIGITS, SMALL, LARGE = "joint-digits", "digits-small", "digits-big"
TRAINED, SEED, SENT, AT_ONCE = 1000, 11, 0.2, 8
"""Images that the models have learned from, and the order that says which: see config/examples/joint_digits_models.py."""


@dataclass(frozen=True, slots=True)
class Plan:
    seconds: float
    rounds: int
    rate: int
    at_once: int
    broker: str


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one measure in one round. `cpu_s`: by name of the process, of 1000 questions. Only by hand some may have failed."""

    answered: int
    failed: int
    p50_ms: float
    p99_ms: float
    per_second: float
    cpu_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """A figure: of the system, of what is written by hand, and what is aimed at. Empty: there is none."""

    what: str
    unit: str
    ours: float
    by_hand: float | None
    aim: str = ""


class Wrong(Exception):
    """Questions failed, or were answered by somebody else."""


# --- the system


def manifest() -> Resource:
    def worker(boot_file: str) -> dict[str, Any]:
        return {"scriptDir": "joint_scripts", "scriptBootFile": boot_file, "frameworkType": "numpy"}

    mining = {"algorithm": "Margin", "parameters": [{"key": "threshold", "value": 0.3}]}
    inputs = {"shape": [28, 28], "dtype": "uint8"}
    spec = {
        "edgeWorkers": [
            {
                "name": LITTLE,
                "nodeName": EDGE,
                "workerSpec": worker("edge.py"),
                "hardExampleMining": mining,
                "inputs": inputs,
            }
        ],
        "cloudWorker": {"name": BIG, "workerSpec": worker("cloud.py")},
        # The deadline is far, so that a machine which stutters shows as slow, not as an answer of the edge.
        "policy": {"deadlineSeconds": 5.0, "maxWaiting": 1000},
    }
    return from_document(
        {"apiVersion": API, "kind": "JointInferenceService", "metadata": {"name": SERVICE}, "spec": spec}
    )


async def served(cloud: Cloud, name: str) -> JointInferenceService:
    def ready(service: Resource | None) -> bool:
        if not isinstance(service, JointInferenceService):
            return False
        return service.status.phase.value == "Running" and service.status.replicas.ready > 0

    found = await cloud.wait("JointInferenceService", name, ready, READY_S)
    assert isinstance(found, JointInferenceService)
    return found


# --- what is written by hand


@asynccontextmanager
async def by_hand(folder: Path) -> AsyncIterator[tuple[str, Mapping[int, str]]]:
    """Yields the address of its edge, and the names of its processes by pid."""
    cloud_port, edge_port = free_port(), free_port()
    cloud_url = f"http://127.0.0.1:{cloud_port}/infer"
    program = str(SCRIPTS / "by_hand.py")
    started = [
        await asyncio.create_subprocess_exec(sys.executable, program, *arguments)
        for arguments in (["cloud", str(cloud_port)], ["edge", str(edge_port), cloud_url, str(folder)])
    ]
    try:
        for port in (cloud_port, edge_port):
            await _accepts(port)
        yield f"http://127.0.0.1:{edge_port}/infer", {started[0].pid: "cloud", started[1].pid: "edge"}
    finally:
        for process in started:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def _accepts(port: int) -> None:
    async def once() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await until(once, f"nobody listens on port {port}")


# --- asking


class Script:
    """The script of an edge: it is told what to ask by files (`joint_scripts/asking.py`)."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0

    async def ready(self) -> None:
        await until(_is_there(self._folder / "ready"), f"{self._folder}: its script asks nothing")

    async def ask(self, wanted: Wanted) -> Found:
        write(self._folder / f"wanted-{self._number}.json", wanted)
        path = self._folder / f"found-{self._number}.json"
        await until(_is_there(path), f"{path} does not come", PATIENT_S + wanted.seconds)
        self._number += 1
        return Found(**json.loads(path.read_text()))


def _is_there(path: Path) -> Callable[[], Awaitable[bool]]:
    async def there() -> bool:
        return path.exists()

    return there


async def until(true: Callable[[], Awaitable[bool]], otherwise: str, patience_s: float = PATIENT_S) -> None:
    try:
        async with asyncio.timeout(patience_s):
            while not await true():
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise Wrong(f"{otherwise} within {patience_s:g} s") from error


def outside(edge: Edge, client: httpx.AsyncClient, gateway: str, hand: str) -> dict[str, Any]:
    """How programs on the edge ask."""

    async def mqtt(x: Any) -> str:
        return (await edge.infer(SERVICE, x)).by

    async def http(x: Any) -> str:
        body = io.BytesIO()
        np.save(body, x)
        headers = {"Content-Type": "application/x-npy"}
        response = await client.post(f"{gateway}/v1/infer/{SERVICE}", content=body.getvalue(), headers=headers)
        return str(response.raise_for_status().json()["by"])

    async def hand_http(x: Any) -> str:
        response = await client.post(hand, json={"input": x.tolist()})
        return str(response.raise_for_status().json()["by"])

    return {"mqtt": mqtt, "http": http, "hand": hand_http}


# --- CPU


class Cpu:
    """Of the processes that have to do with a state directory, by name. Idle ones count as well: they are part of it."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = str(state_dir)

    def seconds(self) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                if any(self._state_dir in word for word in words) and process.pid != psutil.Process().pid:
                    found[_name_of(words)] += _cpu_s(process)
            except psutil.NoSuchProcess:
                continue
        return found


def _name_of(words: Sequence[str]) -> str:
    line = " ".join(words)
    for part, name in (
        (f"/{LITTLE}/script", "edge worker"),
        (f"/{BIG}-0/script", "cloud worker"),
        ("shim.py", "shims"),
        ("mosquitto", "mosquitto"),
        ("nats-server", "nats-server"),
        ("edgeai bridge", "bridge"),
        ("edgeai edge", "edge daemon"),
        ("edgeai cloud", "cloud daemon"),
    ):
        if part in line:
            return name
    return "others"


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


# --- a round


class Round:
    """All measures once."""

    def __init__(
        self, plan: Plan, ours: Script, hand: Script, asks: Mapping[str, Any], cpu: Any, hand_cpu: Any
    ) -> None:
        self._plan, self._ours, self._hand, self._asks = plan, ours, hand, asks
        self._cpu, self._hand_cpu = cpu, hand_cpu

    async def run(self) -> dict[str, Measured]:
        seconds, rate, at_once = self._plan.seconds, self._plan.rate, self._plan.at_once
        one, even = Wanted("infer", seconds), Wanted("infer", seconds, hard=True, rate=rate)
        many = Wanted("infer", seconds, hard=True, at_once=at_once)
        found = {
            "bare": await self._by_script(self._ours, Wanted("bare", min(seconds, 1.0)), "edge"),
            "script": await self._by_script(self._ours, one, "edge"),
            "script by hand": await self._by_script(self._hand, Wanted("thread", seconds), "edge"),
        }
        for name in ("mqtt", "http", "hand"):
            found[f"outside {name}"] = measured(await asked(Wanted(name, seconds), self._asks), "edge")
        for name, wanted in (("rate", even), ("most", many)):
            found[name] = await self._by_script(self._ours, wanted, "cloud", self._cpu)
            found[f"{name} by hand"] = await self._by_script(self._hand, wanted, "cloud", self._hand_cpu)
        return found

    async def _by_script(self, script: Script, wanted: Wanted, by: str, cpu: Any = dict) -> Measured:
        before = await asyncio.to_thread(cpu)
        found = await script.ask(wanted)
        after = await asyncio.to_thread(cpu)
        asked_all = sum(found.by.values()) * (1 + _warm_share(wanted))
        spent = {name: round(1000 * (after[name] - before.get(name, 0.0)) / asked_all, 3) for name in after}
        return measured(found, by, spent, may_fail=script is self._hand)


def _warm_share(wanted: Wanted) -> float:
    """Questions of the warm-up cost CPU too, and are not in what is found."""
    return WARM_UP_S / wanted.seconds


def measured(found: Found, by: str, cpu_s: Mapping[str, float] | None = None, *, may_fail: bool = False) -> Measured:
    """Raises Wrong."""
    if by not in found.by or found.by.keys() - {by, *(["failed"] if may_fail else [])}:
        raise Wrong(f"answers by {found.by}, not all by {by}; {found.failure}")
    ordered = sorted(found.seconds)
    return Measured(
        answered=len(ordered),
        failed=found.by.get("failed", 0),
        p50_ms=round(1000 * percentile(ordered, 0.5), 3),
        p99_ms=round(1000 * percentile(ordered, 0.99), 3),
        per_second=round(len(ordered) / (found.last_s - found.first_s), 1),
        cpu_s=dict(cpu_s or {}),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


# --- the digits


async def curve(cloud: Cloud, edge: Edge) -> dict[str, Any]:
    """Every image that no model has learned from is asked about of both models; what would be sent follows from the margins."""
    file = shipped("config/examples/joint-digits.yaml")
    await cloud.apply([_unlimited(each) for each in load_manifests(file.read_text(), file.name)], base=file.parent)
    await served(cloud, DIGITS)
    with np.load(file.parent / "digits.npz", allow_pickle=False) as arrays:
        x, y = arrays["x"], arrays["y"].astype(int)
    rows = np.random.RandomState(SEED).permutation(len(y))[TRAINED:]
    small, big = [await _scores(edge, x[rows], model) for model in (SMALL, LARGE)]
    right_small, right_big = (scores.argmax(axis=1) == y[rows] for scores in (small, big))
    ordered = np.sort(small, axis=1)
    hardest = np.argsort(ordered[:, -1] - ordered[:, -2], kind="stable")
    # So right it is with the n hardest sent, for every n from none to all.
    right = np.concatenate([[0], np.cumsum((right_big.astype(int) - right_small)[hardest])]) + right_small.sum()
    accuracy, shares = right / len(rows), np.linspace(0, 1, len(rows) + 1)
    at_random = accuracy[0] + shares * (accuracy[-1] - accuracy[0])
    sent, steps = round(SENT * len(rows)), [round(step * len(rows) / 20) for step in range(21)]
    return {
        "images": len(rows),
        "small": float(accuracy[0]),
        "big": float(accuracy[-1]),
        "sent": float(shares[sent]),
        "accuracy": float(accuracy[sent]),
        "recovered": float((accuracy[sent] - accuracy[0]) / (accuracy[-1] - accuracy[0])),
        "least_above_random": float((accuracy - at_random)[steps].min()),
        "points": [[round(float(shares[n]), 4), round(float(accuracy[n]), 4)] for n in steps],
    }


def _unlimited(resource: Resource) -> Resource:
    if not isinstance(resource, JointInferenceService):
        return resource
    policy = resource.spec.policy.model_copy(update={"max_offload_fraction": 1.0, "deadline_seconds": 5.0})
    return resource.model_copy(update={"spec": resource.spec.model_copy(update={"policy": policy})})


async def _scores(edge: Edge, images: Any, model: str) -> Any:
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(image: Any) -> Any:
        async with turn:
            answer = await edge.infer(DIGITS, image, model=model, deadline_s=5.0)
        if answer.fell_back:
            raise Wrong(f"{model} did not answer: {answer.fell_back}")
        return answer.prediction

    return np.array(await asyncio.gather(*(one(image) for image in images)))


# --- all of it


async def run(plan: Plan, folder: Path) -> dict[str, Any]:
    """Raises Wrong."""
    playground = Playground(folder / "world", 1, plan.broker)  # type: ignore[arg-type]
    async with playground.running() as cloud, by_hand(folder / "by-hand") as (hand_url, hand_names):
        [applied] = await cloud.apply([manifest()], base=HERE)
        await served(cloud, SERVICE)
        level = task_level(SERVICE, applied.resource.metadata.uid)
        slot = SlotDir(playground.folder(EDGE) / "slots" / level / LITTLE)
        ours, hand = Script(slot.output / "asked"), Script(folder / "by-hand")
        await asyncio.gather(ours.ready(), hand.ready())
        login = playground.folder(EDGE) / "credentials" / f"{EDGE}.app.json"
        async with connect_edge(EDGE, credentials_file=login) as edge, httpx.AsyncClient(timeout=30) as client:
            asks = outside(edge, client, gateway_url(playground.folder(EDGE)), hand_url)

            def hand_cpu() -> dict[str, float]:
                return {name: _cpu_s(psutil.Process(pid)) for pid, name in hand_names.items()}

            once = Round(plan, ours, hand, asks, Cpu(playground.state_dir).seconds, hand_cpu)
            rounds = [await once.run() for _ in range(plan.rounds)]
            digits = await curve(cloud, edge)
    return {
        "plan": asdict(plan),
        "machine": {"cores": psutil.cpu_count(), "python": platform.python_version(), "load": psutil.getloadavg()[0]},
        "rounds": [{name: asdict(each) for name, each in found.items()} for found in rounds],
        "figures": [asdict(row) for row in figures(plan, rounds, digits)],
        "cpu_s": {name: _shares(rounds, name) for name in ("rate", "rate by hand", "most", "most by hand")},
        "curve": digits,
    }


def figures(plan: Plan, rounds: Sequence[Mapping[str, Measured]], digits: Mapping[str, Any]) -> list[Row]:
    def row(what: str, unit: str, name: str, of: Figure, aim: str = "", hand: str = "") -> Row:
        ours, by_hand = (
            round(statistics.median(of(found, each) for found in rounds), 3)
            for each in (name, hand or f"{name} by hand")
        )
        return Row(what, unit, ours, by_hand, aim)

    edge, cloud, hand = "answer of the edge", "answer of the cloud", "outside hand"
    even, most = f"at {plan.rate}/s", f"{plan.at_once} at once"
    cpu = "CPU of all processes, 1000 answers of the cloud"
    gap, above = 100 * digits["recovered"], 100 * digits["least_above_random"]
    return [
        row(f"{edge}, in the worker's script: added, p50", "ms", "script", _added(1), "at most 1"),
        row(f"{edge}, over MQTT: added, p50", "ms", "outside mqtt", _added(1), hand=hand),
        row(f"{edge}, over the HTTP gateway: added, p50", "ms", "outside http", _added(1), hand=hand),
        row(f"{cloud}, {even}: added, p50", "ms", "rate", _added(2), "at most 8"),
        row(f"{cloud}, {even}: added, p99", "ms", "rate", _added(2, "p99_ms"), "at most 20"),
        row(f"{cloud}, {most}", "per second", "most", lambda found, name: found[name].per_second, "at least 500"),
        row(f"{cpu}, {even}", "s", "rate", _cpu_of),
        row(f"{cpu}, {most}", "s", "most", _cpu_of),
        Row(f"digits: of the gap in accuracy won, {digits['sent']:.0%} sent", "%", round(gap, 1), None, "at least 70"),
        Row(
            "digits: least accuracy above a random choice, 0 to 100 % sent",
            "points",
            round(above, 2),
            None,
            "at least 0",
        ),
    ]


Figure = Callable[[Mapping[str, Measured], str], float]


def _added(bare: int, which: str = "p50_ms") -> Figure:
    """Beside so many bare calls of predict."""
    return lambda found, name: float(getattr(found[name], which)) - bare * found["bare"].p50_ms


def _cpu_of(found: Mapping[str, Measured], name: str) -> float:
    return sum(found[name].cpu_s.values())


def _shares(rounds: Sequence[Mapping[str, Measured]], name: str) -> dict[str, float]:
    """Median CPU seconds of 1000 questions, by process, the largest first."""
    parts = {part for each in rounds for part in each[name].cpu_s}
    found = {part: round(statistics.median(each[name].cpu_s.get(part, 0.0) for each in rounds), 3) for part in parts}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


# --- what is shown


def table(document: Mapping[str, Any]) -> str:
    lines = ["| figure | aim | edgeai | by hand | ratio |", "| --- | --- | ---: | ---: | ---: |"]
    for row in document["figures"]:
        ours, hand, unit = row["ours"], row["by_hand"], row["unit"]
        beside = "" if hand is None else f"{hand:g} {unit}"
        ratio = f"{ours / hand:.2f}" if hand else ""
        lines.append(f"| {row['what']} | {row['aim']} | {ours:g} {unit} | {beside} | {ratio} |")
    plan, machine = document["plan"], document["machine"]
    for name, what in (("rate", f"at {plan['rate']}/s"), ("most", f"{plan['at_once']} at once")):
        spent = ", ".join(
            f"{part} {seconds:g}" for part, seconds in document["cpu_s"][name].items() if seconds >= 0.005
        )
        lines += ["", f"CPU seconds for 1000 answers of the cloud, {what}: {spent}."]
    if lost := sum(each["failed"] for found in document["rounds"] for each in found.values()):
        lines += ["", f"Of what is written by hand {lost} questions had no answer within {PATIENCE_S:g} s."]
    lines += [
        "",
        f"Medians of {plan['rounds']} rounds of {plan['seconds']:g} s for each measure; {machine['cores']} cores, Python "
        f"{machine['python']}.",
    ]
    return "\n".join(lines)


def fill(path: Path, content: str) -> None:
    """Put it between the two comments. Raises ValueError: the page has no such place."""
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} has no place for figures: put {BEGIN} and {END} where they are to be")
    path.write_text(f"{before}{BEGIN}\n{content}\n{END}{after}", encoding="utf-8")


def main() -> int:
    asked_for = argparse.ArgumentParser(description="what joint inference costs, beside plain HTTP")
    asked_for.add_argument("--seconds", type=float, default=5.0, help="of each measure")
    asked_for.add_argument("--rounds", type=int, default=3)
    asked_for.add_argument("--rate", type=int, default=100, help="questions per second for answers of the cloud")
    asked_for.add_argument(
        "--at-once", type=int, default=64, help="questions on their way at once, for as many as there can be"
    )
    asked_for.add_argument("--broker", choices=["auto", "mosquitto", "nats"], default="auto")
    asked_for.add_argument("--json", type=Path, help="also write all figures to this file")
    asked_for.add_argument("--write", type=Path, metavar="PAGE", help="also put the table into this page")
    options = asked_for.parse_args()
    plan = Plan(options.seconds, options.rounds, options.rate, options.at_once, options.broker)
    with tempfile.TemporaryDirectory(prefix="edgeai-benchmark-") as folder:
        try:
            document = asyncio.run(run(plan, Path(folder)))
        except Wrong as error:
            print(error, file=sys.stderr)
            return 1
    print(table(document))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.write:
        fill(options.write, table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
