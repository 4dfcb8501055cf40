"""What a deploy costs those who ask: requests to a job's inference worker while ten versions are swapped under it.

    python tests/benchmarks/serving.py [--framework numpy|tensorflow] [--runs 3] [--json FILE]

Each run starts a whole system (cloud, edge with its broker and bridge, all as processes), applies an incremental learning job,
and lets its inference worker (`camera/main.py`) ask its model at a fixed rate, open loop. Then versions of the output model are
written in the cloud, as `edgeai model rollback` does, each a file of its own; they come down to the edge, are loaded and
checked beside the one that serves, and swapped.

What counts is the ratio of p99 in the windows of the swaps to p99 in the quiet time before each of them, on the same machine. A
window goes from the file by which the controller asks for a model (staged) to the file in which the worker notes that it serves
it. Requests are taken from all windows of a run together: one alone has too few for a p99. Ends with 1 if a request failed or
was dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgeai.cli.playground import Playground
from edgeai.client import Cloud
from edgeai.events.address import task_level
from edgeai.launcher.slots import SlotDir, read_serving
from edgeai.resources.base import instant
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.kinds import from_document
from edgeai.resources.model import Model, ModelFormat, ModelVersion
from edgeai.store.arrays import write_arrays
from edgeai.store.files import digest_of

HERE = Path(__file__).parent
API, EDGE, NAME = "edgeai.io/v1alpha1", "edge1", "served"
WARM_UP_S, SETTLE_S, PATIENCE_S = 2.0, 1.0, 90.0
SHAPES = [(64, 512), (512,), (512, 10), (10,)]


@dataclass(frozen=True, slots=True)
class Plan:
    framework: str
    broker: str
    rate: int
    swaps: int
    settle_s: float
    quiet_s: float


@dataclass(frozen=True, slots=True)
class Request:
    due_s: float
    seconds: float
    model: str


@dataclass(frozen=True, slots=True)
class Swap:
    """Instants, in seconds since 1970: of the quiet time before it, when it was asked for, staged and served."""

    quiet_s: float
    asked_s: float
    staged_s: float
    served_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one run. Of a swap, medians: `way_ms` from the version in the cloud to staged, `swap_ms` from staged to served."""

    requests: int
    failed: int
    dropped: int
    versions: int
    p50_before_ms: float
    p99_before_ms: float
    p50_swap_ms: float
    p99_swap_ms: float
    max_swap_ms: float
    requests_in_swaps: int
    way_ms: float
    swap_ms: float
    ratio: float


# --- the models


def make_models(folder: Path, plan: Plan) -> list[Path]:
    """The first, and one for each swap: of the same layers, with other weights."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    kept = None if plan.framework == "numpy" else _network()
    paths = []
    for number in range(plan.swaps + 1):
        weights = [rng.normal(0, 0.1, shape).astype("float32") for shape in SHAPES]
        path = folder / f"{number}{'.safetensors' if kept is None else '.keras'}"
        if kept is None:
            write_arrays(path, weights)
        else:
            kept.set_weights([rng.normal(0, 0.1, each.shape).astype("float32") for each in kept.get_weights()])
            kept.save(path)
        paths.append(path)
    return paths


def _network() -> Any:
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((64,)),
            layers.Reshape((8, 8, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def manifests(data: Path, first: Path, plan: Plan) -> list[Any]:
    worker = {
        "scriptDir": "camera",
        "scriptBootFile": "main.py",
        "frameworkType": plan.framework,
        "parameters": [
            {"key": "folder", "value": str(data)},
            {"key": "framework", "value": plan.framework},
            {"key": "requests per second", "value": plan.rate},
        ],
    }
    spec = {
        "nodeName": EDGE,
        "initialModel": {"name": NAME},
        "outputModel": {"name": NAME},
        "dataset": {"name": NAME},
        "hardExampleMining": {"algorithm": "Random", "parameters": [{"key": "rate", "value": 0.1}]},
        **{stage: {"workerSpec": worker} for stage in ("train", "eval", "deploy")},
    }
    dataset = {"nodeName": EDGE, "url": str(data / "labelled.npz"), "format": "npz"}
    model = {"url": str(first), "format": ModelFormat.SAFETENSORS if plan.framework == "numpy" else ModelFormat.KERAS}
    return [
        from_document({"apiVersion": API, "kind": kind, "metadata": {"name": NAME}, "spec": each})
        for kind, each in {"Dataset": dataset, "Model": model, "IncrementalLearningJob": spec}.items()
    ]


async def add_version(cloud: Cloud, path: Path) -> ModelVersion:
    """Write a file as the newest version of the model, as `Cloud.rollback` writes an old one."""
    digest = await asyncio.to_thread(digest_of, path)
    await cloud.blobs.put(digest, path)
    stored = await cloud.resources.get("Model", NAME)
    model = Model.from_document(stored.document)
    last = model.status.versions[-1]
    new = ModelVersion(
        version=last.version + 1,
        digest=digest,
        size_bytes=path.stat().st_size,
        format=last.format,
        suffix=last.suffix,
        created_at=instant(datetime.now(UTC)),
    )
    status = model.status.model_copy(update={"versions": (*model.status.versions, new)})
    await cloud.resources.replace(stored, model.model_copy(update={"status": status}).to_document())
    return new


# --- a run


async def run(plan: Plan, folder: Path) -> Measured:
    """In a system of its own."""
    playground = Playground(folder / "world", 1, plan.broker)  # type: ignore[arg-type]
    async with playground.running() as cloud:
        return await served(playground, cloud, plan, folder)


async def served(playground: Playground, cloud: Cloud, plan: Plan, folder: Path) -> Measured:
    """In a system that runs, and has no job called `served` yet. Raises AssertionError if it does not get to its end."""
    paths = await asyncio.to_thread(make_models, folder / "models", plan)
    data = playground.folder(EDGE) / "data"
    rng = np.random.default_rng(1)
    np.savez(data / "labelled.npz", x=rng.random((100, 64), dtype="float32"), y=rng.integers(0, 10, 100))
    applied = await cloud.apply(manifests(data, paths[0], plan), base=HERE)
    job = applied[-1].resource
    assert isinstance(job, IncrementalLearningJob)
    level = task_level(job.metadata.name, job.metadata.uid)
    slot = SlotDir(playground.folder(EDGE) / "slots" / level / "deploy")
    try:
        await until((data / "begun").exists, "the worker asks nothing")
        await asyncio.sleep(WARM_UP_S)
        swaps = [await _swapped(cloud, slot, path, plan) for path in paths[1:]]
        (data / "stop").touch()
        await until((data / "log").exists, "the worker does not end")
    except TimeoutError as error:
        log = (slot.path / "worker.log").read_text()[-3000:] if slot.path.exists() else ""
        raise AssertionError(f"{error}\n{log}") from error
    return measured((data / "log").read_text(), swaps)


async def _swapped(cloud: Cloud, slot: SlotDir, path: Path, plan: Plan) -> Swap:
    """After some quiet time, have a version served."""
    await asyncio.sleep(plan.settle_s)
    began_s = time.time()
    await asyncio.sleep(plan.quiet_s)
    asked_s = time.time()
    new = await add_version(cloud, path)
    wanted = new.digest, new.version

    def served() -> bool:
        found = read_serving(slot.path)
        return found is not None and (found.model.blob.digest, found.version) == wanted

    await until(served, f"version {new.version} is not served")
    staged, noted = slot.models / "serving.json", slot.path / "serving.json"
    return Swap(began_s, asked_s, staged.stat().st_mtime, noted.stat().st_mtime)


async def until(true: Callable[[], bool], otherwise: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not await asyncio.to_thread(true):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{otherwise} within {PATIENCE_S:g} s")
        await asyncio.sleep(0.05)


# --- what it comes to


def measured(log: str, swaps: Sequence[Swap]) -> Measured:
    *lines, last = log.splitlines()
    sent = int(last.removeprefix("sent "))
    found = [Request(float(due), float(seconds), model) for _, due, seconds, model in (line.split() for line in lines)]
    quiet = sorted(each.seconds for each in found if any(swap.quiet_s <= each.due_s < swap.asked_s for swap in swaps))
    # One that was on its way when the window began was asked during it as well.
    during = sorted(
        each.seconds
        for each in found
        if any(swap.staged_s - each.seconds <= each.due_s < swap.served_s for swap in swaps)
    )
    p99, p99_before = percentile(during, 0.99), percentile(quiet, 0.99)
    return Measured(
        requests=sent,
        failed=sum(each.model == "failed" for each in found),
        dropped=sent - len(found),
        versions=len({each.model for each in found} - {"failed"}),
        p50_before_ms=_ms(percentile(quiet, 0.5)),
        p99_before_ms=_ms(p99_before),
        p50_swap_ms=_ms(percentile(during, 0.5)),
        p99_swap_ms=_ms(p99),
        max_swap_ms=_ms(during[-1]),
        requests_in_swaps=len(during),
        way_ms=_ms(statistics.median(swap.staged_s - swap.asked_s for swap in swaps)),
        swap_ms=_ms(statistics.median(swap.served_s - swap.staged_s for swap in swaps)),
        ratio=round(p99 / p99_before, 2),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


def table(framework: str, runs: Sequence[Measured]) -> str:
    heads = ["model", "run", "requests", "failed", "dropped", "versions"]
    heads += ["p50, p99 before", "p50, p99 in swaps", "a swap", "p99: ratio"]
    rows = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for number, each in enumerate(runs, 1):
        rows.append(
            f"| {framework} | {number} | {each.requests} | {each.failed} | {each.dropped} | {each.versions} "
            f"| {each.p50_before_ms:.1f}, {each.p99_before_ms:.1f} ms | {each.p50_swap_ms:.1f}, {each.p99_swap_ms:.1f} ms "
            f"| {each.swap_ms:.0f} ms | {each.ratio:.2f} |"
        )
    rows.append(f"\nMedian of the ratios of p99: {statistics.median(each.ratio for each in runs):.2f}")
    return "\n".join(rows)


def main() -> int:
    asked = argparse.ArgumentParser(description="requests while models are swapped")
    asked.add_argument("--framework", choices=["numpy", "tensorflow"], default="numpy")
    asked.add_argument("--broker", choices=["auto", "mosquitto", "nats"], default="auto")
    asked.add_argument("--runs", type=int, default=3)
    asked.add_argument("--swaps", type=int, default=10)
    asked.add_argument("--rate", type=int, default=200, help="requests per second")
    asked.add_argument("--quiet", type=float, default=1.5, help="seconds of serving before each swap, to compare with")
    asked.add_argument("--json", type=Path, help="also write the figures to this file")
    options = asked.parse_args()
    plan = Plan(options.framework, options.broker, options.rate, options.swaps, SETTLE_S, options.quiet)
    runs = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory(prefix="edgeai-benchmark-") as folder:
            runs.append(asyncio.run(run(plan, Path(folder))))
    print(table(plan.framework, runs))
    if options.json:
        document = {"plan": asdict(plan), "runs": [asdict(each) for each in runs]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any(each.failed or each.dropped for each in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
