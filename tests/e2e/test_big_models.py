"""Models above the inline limit: in chunks over both brokers, once per node, in memory that does not grow with workers."""

from __future__ import annotations

import asyncio
import re
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
from living_world import Worker, World, describe, digest_of, updates_of

from edgeai.resources.federated import FederatedTask
from edgeai.resources.model import Model
from edgeai.store.arrays import ArrayFile

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

EDGES = 2
TWO_ON_ONE_NODE = (
    Worker("work1", "edge1", "dataset0"),
    Worker("work2", "edge1", "dataset0"),
    Worker("work3", "edge2", "dataset1"),
)
MEGABYTE = 1024 * 1024


@pytest.mark.parametrize("world", ["mosquitto", "nats"], indirect=True)
async def test_a_big_model_goes_to_each_node_once_and_comes_out_as_the_weighted_mean(world: World, tmp_path: Path):
    task = await world.train("big", TWO_ON_ONE_NODE, rounds=2, pause=0, floats=750_000)
    digest = digest_of(task)
    size_bytes = await _size_bytes(world, "big")
    assert size_bytes > 10 * 256 * 1024
    assert updates_of(task) == [3, 3]
    for row in task.status.rounds:
        # Whatever is asked for again counts again; a third time would be once per worker.
        assert 3 * size_bytes <= row.bytes_up < 4 * size_bytes
        assert 2 * size_bytes <= row.bytes_down < 3 * size_bytes
    await world.cloud.blobs.get(digest, tmp_path / "model")
    for found, expected in zip(ArrayFile.open(tmp_path / "model"), _expected(world), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def _expected(world: World) -> list[np.ndarray]:
    """What the workers of scripts/steady make of zeros in two rounds, averaged by number of examples."""
    counts = {}
    for worker in TWO_ON_ONE_NODE:
        with np.load(world.folder(worker.node) / "data" / "digits.npz") as data:
            counts[worker.name] = len(data["y_train"])
    weights: list[np.ndarray] = [np.zeros(750_000, "float32"), np.zeros((2, 3))]
    for number in (1, 2):
        total = [np.zeros(array.shape) for array in weights]
        for name, count in counts.items():
            random = np.random.default_rng(zlib.crc32(f"{name} {number}".encode()))
            for place, array in enumerate(weights):
                total[place] += count * (array / 2 + random.standard_normal(array.shape, dtype=array.dtype))
        weights = [(sums / sum(counts.values())).astype(old.dtype) for sums, old in zip(total, weights, strict=True)]
    return weights


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("world", ["mosquitto"], indirect=True)
async def test_aggregating_100_megabyte_models_needs_little_more_memory_than_three_of_them(world: World):
    task = await world.apply(
        "huge", TWO_ON_ONE_NODE[1:], rounds=1, pause=0, floats=25_000_000, **{"round_deadline_seconds": 300}
    )
    peak = asyncio.create_task(_peak_bytes(world, task))
    task = await world.ended("huge", 300)
    peak.cancel()
    assert updates_of(task) == [2], describe(task)
    assert digest_of(task)
    assert await peak < 3 * await _size_bytes(world, "huge") + 150 * MEGABYTE


async def _size_bytes(world: World, name: str) -> int:
    model = await world.cloud.get("Model", name)
    assert isinstance(model, Model)
    return model.status.versions[-1].size_bytes


async def _peak_bytes(world: World, task: FederatedTask) -> int:
    """The most memory that the aggregation worker has had, looked at until cancelled."""
    peak = 0
    try:
        while True:
            await asyncio.sleep(0.1)
            try:
                status = Path(f"/proc/{world.worker(task, 'aggregation')}/status").read_text()
            except (OSError, psutil.Error):
                continue
            found = re.search(r"VmHWM:\s+(\d+) kB", status)
            peak = max(peak, int(found.group(1)) * 1024 if found else 0)
    except asyncio.CancelledError:
        assert peak, "the aggregation worker was never seen"
        return peak
