"""What the Docker launcher promises beyond the contract of all launchers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tracemalloc
import uuid
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest
from registry import MANIFEST_DIGEST, registry

from edgeai.errors import EngineUnavailable, LaunchError
from edgeai.launcher import docker as docker_launcher
from edgeai.launcher.base import MIB, ContainerSpec, ExitReason, ExitRecord, LaunchSpec, Mount, Running
from edgeai.launcher.container import container_name
from edgeai.launcher.docker import DockerLauncher, engine_url

pytestmark = pytest.mark.containers

BASE = "python:3.11-slim-bookworm"
ABSENT = f"sha256:{'0' * 64}"


# --- images


async def test_an_image_that_is_missing_and_cannot_be_pulled_is_named(launcher, spec):
    with pytest.raises(LaunchError, match=r"image 127\.0\.0\.1:9/absent:1 is not on edge1 and cannot be pulled: "):
        await launcher.start(spec("", image="127.0.0.1:9/absent:1"))


async def test_a_node_that_pulls_no_images_says_so(engine, spec):
    with pytest.raises(LaunchError, match="this node pulls no images"):
        await DockerLauncher("edge1", url=engine, pull=False).start(spec("", image="absent:1"))


async def test_a_missing_image_is_pulled_and_tells_how_far_it_came(engine, docker):
    told = []
    with registry() as address:
        image = await DockerLauncher("edge1", url=engine, progress=told.append).ensure_image(f"{address}/probe:1")
    docker("rmi", image.name)

    assert {each.image for each in told} == {image.name}
    assert "Pull complete" in {each.what for each in told}


async def test_an_image_is_pulled_by_its_digest(launcher, docker):
    with registry() as address:
        image = await launcher.ensure_image(f"{address}/probe@{MANIFEST_DIGEST}")
    docker("rmi", image.name)

    assert image.id.startswith("sha256:")


async def test_an_image_of_another_digest_is_not_used(launcher):
    with pytest.raises(LaunchError, match=rf"{ABSENT} is not on edge1 \(what is here as {BASE} is sha256:"):
        await launcher.ensure_image(f"{BASE}@{ABSENT}")


async def test_an_image_that_was_built_here_is_known_by_its_id(launcher):
    image = await launcher.ensure_image(BASE)

    assert (await launcher.ensure_image(f"{BASE}@{image.id}")).id == image.id
    assert (await launcher.ensure_image(image.id)).id == image.id


async def test_an_image_with_another_id_than_expected_does_not_start(launcher, spec):
    with pytest.raises(LaunchError, match=f"not {ABSENT}, which is asked for"):
        await launcher.start(spec("", image_id=ABSENT))


async def test_volumes_of_an_image_are_memory_and_leave_nothing(engine, docker, run, tmp_path):
    (tmp_path / "Dockerfile").write_text(f"FROM {BASE}\nVOLUME /data\n")
    tag = f"edgeai-probe:{uuid.uuid4().hex[:8]}"
    environment = {**os.environ, "DOCKER_HOST": engine, "DOCKER_BUILDKIT": "0"}
    subprocess.run(["docker", "build", "-t", tag, tmp_path], env=environment, check=True, capture_output=True)
    before = docker("volume", "ls", "-q")

    outcome = await run("print(*(line for line in open('/proc/mounts') if ' /data ' in line))", image=tag)
    after = docker("volume", "ls", "-q")
    docker("rmi", "-f", tag)

    assert outcome.log.startswith("tmpfs /data tmpfs ")
    assert before == after


# --- refusals


async def test_a_worker_without_an_image_is_refused(launcher, slot):
    with pytest.raises(LaunchError, match="w could not be started: no image is named for it"):
        await launcher.start(LaunchSpec("w", slot, ["python"]))


async def test_a_node_without_a_gpu_says_so(launcher, spec):
    with pytest.raises(LaunchError, match="edge1 has no GPU"):
        await launcher.start(spec("", gpus=1))


@pytest.mark.parametrize("network", ["host", "container:other"])
async def test_the_network_of_another_is_refused(network, launcher, spec):
    with pytest.raises(LaunchError, match=f"network {network} would share"):
        await launcher.start(spec("", network=network))


async def test_an_unknown_network_is_named(launcher, slot, spec):
    with pytest.raises(LaunchError, match="no-such-network not found"):
        await launcher.start(spec("", network="no-such-network"))

    assert await launcher.last_exit(slot) is None


async def test_a_worker_gets_the_network_that_is_named_for_it(run, docker):
    name = f"edgeai-probe-{uuid.uuid4().hex[:8]}"
    docker("network", "create", "--internal", name)
    outcome = await run("import socket; print([name for _, name in socket.if_nameindex()])", network=name)
    docker("network", "rm", name)

    assert "eth0" in outcome.log


async def test_a_missing_dataset_is_named(launcher, spec):
    with pytest.raises(LaunchError, match="/no/such/file does not exist"):
        await launcher.start(spec("", mounts=[Mount(Path("/no/such/file"), "/edgeai/data/file")]))


async def test_the_socket_of_the_engine_is_never_mounted(engine, launcher, spec):
    socket = Path(engine.removeprefix("unix://"))
    for source, says in ((socket, "is a socket"), (socket.parent, "holds the socket"), (Path("/"), "holds the socket")):
        with pytest.raises(LaunchError, match=says):
            await launcher.start(spec("", mounts=[Mount(source, "/edgeai/bus")]))


# --- whose container it is


async def test_a_container_with_our_name_that_is_not_ours_is_left_alone(launcher, slot, spec, docker):
    name = container_name("edge1", "w", slot)
    foreign = docker("create", "--name", name, BASE, "true")
    try:
        with pytest.raises(LaunchError, match=f"then remove it with `docker rm -f {name}`"):
            await launcher.start(spec(""))

        assert docker("inspect", "--format", "{{.Id}}", name) == foreign
    finally:
        docker("rm", "-f", foreign)


async def test_a_running_container_with_our_labels_is_not_adopted(launcher, slot, waiting, record, docker):
    running = await waiting()
    ours = record()
    labels = docker("inspect", "--format", "{{json .Config.Labels}}", str(ours["id"]))
    await launcher.remove(slot)
    options = [f"--label={key}={value}" for key, value in json.loads(labels).items() if key != "edgeai.owner"]
    foreign = docker("run", "-d", "--name", str(ours["name"]), *options, BASE, "sleep", "60")
    (slot / ".container/container.json").write_text(json.dumps({**ours, "id": foreign}))
    try:
        assert await launcher.adopt("w", slot) is None
        assert (await launcher.stop(running, 0.0)).reason is ExitReason.LOST
        await launcher.remove(slot)

        assert docker("inspect", "--format", "{{.State.Running}}", foreign) == "true"
    finally:
        docker("rm", "-f", foreign)


async def test_a_start_that_was_cut_short_before_the_container_was_made_is_begun_again(launcher, slot, run, record):
    await run("")
    remembered = record()
    await launcher.remove(slot)
    (slot / ".container/container.json").write_text(json.dumps({**remembered, "id": ""}))

    assert await launcher.adopt("w", slot) is None
    assert (await run("print('again')")).log.endswith("again\n")


async def test_a_start_that_was_cut_short_before_the_container_ran_is_begun_again(launcher, slot, run, record, docker):
    await run("")
    remembered = record()
    await launcher.remove(slot)
    docker("create", "--name", str(remembered["name"]), "--label", f"edgeai.owner={remembered['owner']}", BASE, "true")
    (slot / ".container/container.json").write_text(json.dumps({**remembered, "id": ""}))

    assert await launcher.adopt("w", slot) is None
    assert (await run("print('again')")).log.endswith("again\n")


async def test_of_starts_that_are_cancelled_nothing_is_left_after_the_removal(launcher, slot, spec, docker):
    """At different moments: an engine goes on to make what it was asked for, whoever waits."""
    node = f"n-{uuid.uuid4().hex[:8]}"
    cancelled = DockerLauncher(node, url=launcher.url)
    for number in range(12):
        starting = asyncio.create_task(cancelled.start(spec("")))
        while not (slot / ".container/container.json").exists():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.002 * number)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await cancelled.remove(slot)

    assert docker("ps", "-aq", "--filter", f"label=edgeai.node={node}") == ""


async def test_a_worker_outlives_the_process_that_started_it_unchanged(engine, launcher, slot, record, docker):
    script = f"""
import asyncio, os, signal
from pathlib import Path
from edgeai.launcher.base import ContainerSpec, LaunchSpec
from edgeai.launcher.docker import DockerLauncher
argv = ["python", "-c", "import signal; signal.pause()"]
spec = LaunchSpec("w", Path({str(slot)!r}), argv, container=ContainerSpec({BASE!r}))
print(asyncio.run(DockerLauncher("edge1", url={engine!r}).start(spec)).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    output, _ = await parent.communicate()
    started = docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", str(record()["id"]))

    adopted = await launcher.adopt("w", slot)

    assert adopted is not None
    assert adopted.pid == int(output.split()[-1])
    assert docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", str(record()["name"])) == started


# --- endings


async def test_a_container_that_was_removed_by_somebody_else_is_lost(launcher, slot, waiting, record, docker):
    running = await waiting()
    ending = asyncio.create_task(launcher.wait(running))
    await asyncio.sleep(0)

    docker("rm", "-f", str(record()["id"]))

    async with asyncio.timeout(20):
        assert (await ending).reason is ExitReason.LOST
    assert (await launcher.last_exit(slot)) == ExitRecord(ExitReason.LOST)


async def test_a_paused_container_can_be_stopped(launcher, waiting, record, docker):
    running = await waiting()
    docker("pause", str(record()["id"]))

    assert (await launcher.stop(running, 10.0)).signal == "SIGTERM"


async def test_the_ending_is_known_after_the_container_was_removed(launcher, slot, run):
    outcome = await run("print('done'); raise SystemExit(3)")

    await launcher.remove(slot)

    assert await launcher.last_exit(slot) == outcome.record


async def test_nothing_is_left_after_a_removal(launcher, slot, waiting, record, docker):
    await waiting()
    name = str(record()["name"])

    await launcher.remove(slot)

    assert docker("ps", "-aq", "--filter", f"name={name}") == ""


async def test_one_slot_never_has_two_containers(launcher, slot, spec, record, docker):
    for _ in range(2):
        async with asyncio.timeout(20):
            await launcher.wait(await launcher.start(spec("")))

    assert docker("ps", "-a", "--filter", f"name={record()['name']}", "--format", "{{.ID}}").count("\n") == 0


# --- figures


async def test_stats_are_told_while_a_worker_runs(launcher, waiting):
    running = await waiting(memory_bytes=96 * MIB)

    async with asyncio.timeout(20), aclosing(launcher.stats(running)) as figures:
        stats = await anext(figures)

    assert stats.memory_limit_bytes == 96 * MIB
    assert 0 < stats.memory_bytes < 96 * MIB
    assert stats.pids >= 1
    assert stats.cpu_s > 0


async def test_stats_end_with_the_worker(launcher, waiting):
    running = await waiting()
    async with asyncio.timeout(20), aclosing(launcher.stats(running)) as figures:
        await anext(figures)
        await launcher.stop(running, 10.0)

        assert [each async for each in figures][5:] == []


# --- the engine


async def test_an_absent_engine_is_told_with_what_to_do(slot):
    launcher = DockerLauncher("edge1", url="unix:///no/such/socket")

    with pytest.raises(EngineUnavailable) as raised:
        await launcher.start(LaunchSpec("w", slot, ["python"], container=ContainerSpec(BASE)))

    assert str(raised.value) == (
        "no Docker engine answers at unix:///no/such/socket; start it, set DOCKER_HOST, or use the process launcher"
        " (--launcher process)"
    )


async def test_an_engine_that_hangs_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(docker_launcher, "_ANSWER_S", 0.05)
    left = asyncio.Event()

    async def hang(reader, writer):
        await reader.read()  # until the launcher has given up
        writer.close()
        await writer.wait_closed()
        left.set()

    async with await asyncio.start_unix_server(hang, tmp_path / "engine.sock"):
        with pytest.raises(EngineUnavailable, match="no answer in time"):
            await DockerLauncher("edge1", url=f"unix://{tmp_path}/engine.sock").check()
        await left.wait()


async def test_something_that_is_no_address_of_an_engine_is_told():
    with pytest.raises(LaunchError, match="nonsense is not the address of a Docker engine"):
        await DockerLauncher("edge1", url="nonsense").check()


async def test_the_engine_tells_its_version(launcher):
    assert (await launcher.check()).split(".")[0].isdigit()


def test_the_engine_of_the_environment_is_used(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///elsewhere")

    assert engine_url() == "unix:///elsewhere"


@pytest.fixture
def engine_script(engine: str) -> list[str]:
    """Restarts the engine, if it is one that we started for the tests."""
    script = Path(__file__).parents[2] / ".ci/engine"
    cache = Path(os.environ.get("EDGEAI_CACHE") or Path.home() / ".cache/edgeai")
    if engine != f"unix://{cache}/engine/docker.sock":
        pytest.skip(f"the engine at {engine} is not ours to restart")
    return [str(script), "restart"]


async def restart(command: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


async def test_a_worker_that_a_restart_of_the_engine_ended_is_told_to_who_waits(launcher, waiting, engine_script):
    ending = asyncio.create_task(launcher.wait(await waiting()))
    await asyncio.sleep(0)

    await restart(engine_script)

    async with asyncio.timeout(30):
        assert (await ending).reason in {ExitReason.KILLED, ExitReason.EXITED, ExitReason.LOST}


async def test_a_worker_that_died_with_its_engine_is_told_to_who_waits(
    launcher, slot, waiting, spec, engine, engine_script
):
    ending = asyncio.create_task(launcher.wait(await waiting()))
    await asyncio.sleep(0)
    pid = int((Path(engine.removeprefix("unix://")).parent / "pid").read_text())

    psutil.Process(pid).kill()
    await restart(engine_script)

    async with asyncio.timeout(60):
        assert (await ending).reason in {ExitReason.KILLED, ExitReason.EXITED, ExitReason.LOST}
        assert isinstance(await launcher.start(spec("print('again')")), Running)


FLOOD = """
import sys, time
for _ in range(9000):
    sys.stdout.write("x" * 999 + "\\n")
print("waiting", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("offset", [0, -1000], ids=["first-part", "end"])
async def test_a_part_of_a_large_log_is_read_without_the_rest(launcher, spec, slot, offset: int):
    await launcher.start(spec(FLOOD, log_limit_bytes=32 * MIB))
    async with asyncio.timeout(60):
        while b"waiting" not in (await launcher.read_log(slot, -20)).text:
            await asyncio.sleep(0.05)

    tracemalloc.start()
    part = await launcher.read_log(slot, offset)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert part.text
    assert peak_bytes < 3 * MIB
