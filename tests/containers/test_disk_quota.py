"""A worker that fills its disk is ended, told why, and disturbs nobody."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import pytest_asyncio
from caged_world import apply, caged, reason
from living_world import Worker, World, updates_of

from edgeai.launcher.base import MIB, ExitReason, ExitRecord
from edgeai.launcher.disk import remove_tree
from edgeai.launcher.docker import DockerLauncher
from edgeai.resources.needs import WorkerResources

pytestmark = [pytest.mark.containers, pytest.mark.timeout(180)]

FILLS = """
import itertools, time
piece = bytes(1 << 20)
for number in itertools.count():
    with open(f"file{number}", "wb") as file:
        for _ in range(4):
            file.write(piece)
    if number == 20:
        print("still writing", flush=True)
    time.sleep(0.01 if number < 100 else 1)
"""
HIDES = """
import time
kept = []
for _ in range(30):
    with open("file", "wb", 0) as file:
        file.write(bytes(4 << 20))
        kept.append(open("file", "rb"))
    import os; os.unlink("file")
print("hidden", os.listdir("."), flush=True)
time.sleep(60)
"""
MAPS = """
import mmap, os, time
kept = []
for _ in range(30):
    with open("file", "w+b", 0) as file:
        file.write(bytes(4 << 20))
        kept.append(mmap.mmap(file.fileno(), 4096))
    os.unlink("file")
time.sleep(60)
"""
LITTERS = """
import time
for number in range(3000):
    open(f"file{number}", "w").close()
time.sleep(60)
"""
NESTS = """
import os, time
for _ in range(3000):
    os.mkdir("a" * 50)
    os.chdir("a" * 50)
time.sleep(60)
"""


async def test_a_worker_that_fills_its_disk_is_ended_and_told_its_limit(run):
    outcome = await run(FILLS, disk_bytes=64 * MIB)

    assert outcome.record == ExitRecord(
        ExitReason.DISK, signal="SIGKILL", last_line=outcome.record.last_line, limit=64 * MIB
    )


@pytest.mark.parametrize("script", [HIDES, MAPS], ids=["open", "mapped"])
async def test_what_a_worker_deletes_and_keeps_counts(run, script: str):
    if os.geteuid() != 0 and script is MAPS:
        pytest.skip("only the super-user may look at what others have mapped")
    assert (await run(script, disk_bytes=64 * MIB)).record.reason is ExitReason.DISK


@pytest.mark.parametrize("script", [LITTERS, NESTS], ids=["many", "deep"])
async def test_a_worker_that_makes_more_files_and_folders_than_it_may_is_ended(run, slot: Path, launcher, script: str):
    record = (await run(script, entries=2000)).record
    await launcher.remove(slot)
    remove_tree(slot)

    assert (record.reason, record.limit) == (ExitReason.FILES, 2000)
    assert not slot.exists()


async def test_a_worker_that_keeps_within_its_limits_is_left_alone(run):
    script = "import time\nopen('file', 'wb').write(bytes(8 << 20))\ntime.sleep(2.5)"

    assert (await run(script, disk_bytes=16 * MIB, entries=10)).record == ExitRecord(ExitReason.EXITED, code=0)


async def test_one_file_is_never_longer_than_the_disk_of_its_worker(run):
    script = "print(__import__('resource').getrlimit(__import__('resource').RLIMIT_FSIZE)[0] >> 20)"

    assert (await run(script, disk_bytes=16 * MIB)).log == "16\n"


async def test_a_controller_that_is_restarted_goes_on_to_measure(engine: str, launcher, slot: Path, spec):
    await launcher.start(spec(FILLS, disk_bytes=64 * MIB))
    restarted = DockerLauncher("edge1", url=engine)
    running = await restarted.adopt("w", slot)
    assert running is not None

    async with asyncio.timeout(60):
        assert (await restarted.wait(running)).reason is ExitReason.DISK


async def test_what_was_decided_before_a_restart_is_done_after_it(engine: str, launcher, slot: Path, waiting):
    running = await waiting(disk_bytes=64 * MIB)
    (slot / "file").write_bytes(bytes(80 * MIB))
    async with asyncio.timeout(60):
        assert (await launcher.wait(running)).reason is ExitReason.DISK
    (slot / ".container/exit.json").unlink()  # killed before it could write down what it has seen

    assert (await DockerLauncher("edge1", url=engine).last_exit(slot)).reason is ExitReason.DISK


# --- a whole task


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cage(engine: str, tmp_path_factory: pytest.TempPathFactory):
    async with caged(engine, tmp_path_factory.mktemp("quota")) as world:
        yield world


@pytest.mark.asyncio(loop_scope="module")
async def test_a_disk_that_is_full_is_told_in_words_and_the_others_finish(cage: World):
    steady = Worker("work1", "edge1", "dataset0")
    filler = Worker("work2", "edge2", "dataset1", "../containers/scripts/filler")
    task = await apply(cage, "full", (steady, filler), resources=WorkerResources(disk="64Mi"), rounds=2)

    task = await reason(cage, "full", "work2", "used more disk than its limit of 64 MiB (resources.disk) and was ended")
    slot = cage.slot(task, "work2")
    task = await cage.ended("full")
    await cage.delete("full")

    assert updates_of(task) == [1, 1]
    assert not slot.exists()
