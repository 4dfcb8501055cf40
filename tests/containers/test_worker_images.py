"""Our worker images as built by `.ci/engine`, and the builder itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from caged_world import apply, caged
from living_world import Worker, digest_of, updates_of

from edgeai.errors import LaunchError
from edgeai.launcher import images, packing
from edgeai.launcher.base import MIB, Mount
from edgeai.launcher.building import LABEL, build
from edgeai.launcher.docker import ImageProgress
from edgeai.launcher.images import AGGREGATION, EVALUATION, FRAMEWORK, FRAMEWORK_VERSION, NUMPY, TENSORFLOW, WorkerImage

pytestmark = pytest.mark.containers

BASE = images.BASE
EACH = pytest.mark.parametrize(
    "image",
    [AGGREGATION, NUMPY, EVALUATION, pytest.param(TENSORFLOW, marks=pytest.mark.tensorflow)],
    ids=lambda image: image.folder,
)


@pytest.fixture
def built(docker):
    """The tag of an image of ours that is there; else the test skips, in CI it fails."""

    def find(image: WorkerImage) -> str:
        try:
            docker("image", "inspect", image.tag)
        except subprocess.CalledProcessError:
            if os.environ.get("CI"):
                pytest.fail(f"{image.tag} was not built")
            pytest.skip(f"{image.tag} was not built (`.ci/engine start` does)")
        return image.tag

    return find


@EACH
async def test_an_image_runs_a_script_on_the_lib_as_a_user_without_rights(image, built, run):
    script = "import edgeai, os; edgeai.join; print(os.getuid())"

    assert (await run(script, image=built(image), memory_bytes=512 * MIB)).log == "10001\n"


@pytest.mark.parametrize(
    ("image", "module"),
    [
        (NUMPY, "numpy"),
        (NUMPY, "sklearn.linear_model"),
        pytest.param(TENSORFLOW, "keras", marks=pytest.mark.tensorflow),
    ],
    ids=["numpy", "sklearn", "keras"],
)
async def test_an_image_brings_its_framework_compiled(image, module, built, run):
    script = f"import importlib, os; print(os.path.exists(importlib.import_module({module!r}).__cached__))"

    assert (await run(script, image=built(image), memory_bytes=1024 * MIB, pids=256)).log.endswith("True\n")


@pytest.mark.parametrize(
    ("image", "framework"), [(NUMPY, "numpy"), pytest.param(TENSORFLOW, "tensorflow", marks=pytest.mark.tensorflow)]
)
async def test_an_image_says_which_version_of_its_framework_it_holds(image, framework, built, launcher):
    labels = (await launcher.ensure_image(built(image))).labels

    assert labels[FRAMEWORK] == framework
    assert labels[FRAMEWORK_VERSION][0].isdigit()


@EACH
async def test_an_image_cannot_install_anything(image, built, run):
    script = "import importlib.util; print([name for name in ('pip', 'setuptools') if importlib.util.find_spec(name)])"

    assert (await run(script, image=built(image))).log == "[]\n"


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker) -> Iterator[WorkerImage]:
    """An image of which only the Dockerfile is missing."""
    (tmp_path / "workers/probe").mkdir(parents=True)
    monkeypatch.setattr(images, "shipped", lambda path: tmp_path / path)
    for module in (images, packing):
        monkeypatch.setattr(module, "own_version", lambda: "1")
    image = WorkerImage("probe", f"edgeai-probe/{uuid.uuid4().hex[:8]}", distributions=("probe",))
    yield image
    with contextlib.suppress(subprocess.CalledProcessError):  # it was not built
        docker("rmi", "-f", image.tag)


async def test_an_image_is_built_with_the_wheelhouse_and_tells_how_far_it_came(probe, tmp_path, engine, docker):
    steps = "FROM ${BASE}\nARG FRAMEWORK_VERSION\nLABEL v=${FRAMEWORK_VERSION}\nCOPY Dockerfile wheelhouse* /w/\n"
    (tmp_path / "workers/probe/Dockerfile").write_text(f"ARG BASE\n{steps}")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/probe-7-py3-none-any.whl").touch()
    told: list[ImageProgress] = []

    tags = await build([probe], url=engine, wheelhouse=tmp_path / "wheels", progress=told.append)
    files = docker("run", "--rm", "--network=none", tags[0], "ls", "/w")
    version = docker("inspect", "--format", "{{.Config.Labels.v}}", tags[0])

    assert (files.split(), version) == (["Dockerfile", "edgeai-1-py3-none-any.whl", "probe-7-py3-none-any.whl"], "7")
    assert (told[-1].current, told[-1].total) == (5, 5)


async def test_an_image_that_cannot_be_built_says_where_and_why(probe, tmp_path, engine):
    (tmp_path / "workers/probe/Dockerfile").write_text(f"FROM {BASE}\nRUN exit 7\n")

    with pytest.raises(LaunchError, match=rf"image {probe.tag} cannot be built: `exit 7` returned code 7"):
        await build([probe], url=engine)


async def test_of_a_build_that_is_cut_short_nothing_is_left(probe, tmp_path, engine, docker):
    stage = f"FROM {BASE}\nARG BUILD\nLABEL {LABEL}=$BUILD {probe.name}=1\nCOPY Dockerfile /w/\n"
    (tmp_path / "workers/probe/Dockerfile").write_text(f"{stage}RUN sleep 600\n")
    sleeping = asyncio.Event()

    def listen(progress: ImageProgress) -> None:
        if progress.what.startswith("---> Running in") and progress.current == progress.total:
            sleeping.set()

    building = asyncio.create_task(build([probe], url=engine, progress=listen))
    async with asyncio.timeout(30):
        await sleeping.wait()
        building.cancel()
        await asyncio.wait({building})

    assert building.cancelled()
    assert docker("images", "--quiet", "--filter", f"label={probe.name}") == ""
    assert docker("ps", "--all", "--quiet", "--filter", f"label={probe.name}") == ""


@pytest.mark.timeout(180)
async def test_an_evaluation_worker_measures_every_model_and_has_no_part_in_any(built, engine, tmp_path):
    of_numpy = {"folder": "../../workers/federated-numpy", "parameters": {"batch size": 16, "learning rate": 0.1}}
    trainers = [Worker("work1", "edge1", "dataset0", **of_numpy), Worker("work2", "edge2", "dataset1", **of_numpy)]
    evaluator = Worker("work3", "edge2", "dataset1", folder="../../workers/evaluation")
    built(NUMPY), built(AGGREGATION)

    async with caged(engine, tmp_path) as world:
        without = await world.train("without", trainers, rounds=3)
        await apply(world, "with", [*trainers, evaluator], rounds=3, image=built(EVALUATION))
        joined = await world.ended("with")

    assert digest_of(joined) == digest_of(without)
    assert updates_of(joined) == [2, 2, 2]
    # Its examples weigh in the metrics as those of the others do: now those of dataset1 count twice.
    assert joined.status.rounds[-1].metrics["accuracy"] != without.status.rounds[-1].metrics["accuracy"]


async def test_a_worker_without_network_reaches_the_socket_of_its_broker(tmp_path, run):
    (tmp_path / "bus").mkdir()
    served = asyncio.Event()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()
        await writer.wait_closed()
        served.set()

    async with await asyncio.start_unix_server(answer, tmp_path / "bus/broker.sock"):
        (tmp_path / "bus/broker.sock").chmod(0o666)
        script = (
            "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('/edgeai/bus/broker.sock')\nprint(s.recv(5))"
        )
        outcome = await run(script, mounts=[Mount(tmp_path / "bus", "/edgeai/bus")])
        async with asyncio.timeout(10):
            await served.wait()

    assert outcome.log == "b'hello'\n"
