"""What a worker is told and shown, as a process and as a container; what a node does not give is refused with a reason."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from edgeai.bus.credentials import read_credentials_file, write_credentials_file
from edgeai.controller.places import ContainerPlaces, Prepared, ProcessPlaces
from edgeai.controller.scripts import PreparationProblem
from edgeai.errors import EngineUnavailable, LaunchError
from edgeai.events.catalogue import Assignment, BlobRef, Needs, Role
from edgeai.launcher.container import Image, User
from edgeai.launcher.images import AGGREGATION, FRAMEWORK_VERSION, NUMPY
from edgeai.launcher.slots import SlotDir

MINE = Assignment(
    "digits-0a1b2c3d",
    "digits",
    "0a1b2c3d" * 4,
    1,
    "work0",
    Role.TRAINING,
    boot_file="main.py",
    script=BlobRef("ab" * 32, 1),
    framework="numpy",
    framework_version=">=1",
)


class FakeImages:
    """Images by name; what is not there is refused as an engine would."""

    def __init__(self, *images: Image) -> None:
        self.user = User(os.geteuid(), os.getegid())
        self.images = {image.name: image for image in images}
        self.away = False

    async def ensure_image(self, name: str, image_id: str = "") -> Image:
        if self.away:
            raise EngineUnavailable("unix:///none")
        if name not in self.images:
            raise LaunchError(f"image {name} is not on edge1 and cannot be pulled")
        return self.images[name]


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> FakeImages:
    monkeypatch.setattr("edgeai.controller.places._PULL_PAUSES_S", (0.0,))
    return FakeImages(Image(NUMPY.tag, "sha256:1", {FRAMEWORK_VERSION: "1.26"}), Image(AGGREGATION.tag, "sha256:2", {}))


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    write_credentials_file(tmp_path / "login.json", "mqtt://127.0.0.1:1883", "worker", "secret")
    return tmp_path / "login.json"


@pytest.fixture
def containers(tmp_path: Path, images: FakeImages, credentials: Path) -> ContainerPlaces:
    bus = f"mqtt+unix://{tmp_path}/socket/mqtt"
    return ContainerPlaces("edge1", bus, credentials, tmp_path / "workers", images, {"EDGEAI_LOG": "info"})


@pytest.fixture
def processes(credentials: Path) -> ProcessPlaces:
    return ProcessPlaces("edge1", "mqtt://127.0.0.1:1883", credentials)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    dataset = tmp_path / "digits.npz"
    dataset.touch(0o644)
    return Prepared(SlotDir(tmp_path / "slot"), tmp_path / "slot/.container/script", dataset)


def needing(**needs: object) -> Assignment:
    return replace(MINE, needs=Needs(**needs))  # type: ignore[arg-type]


def test_a_process_sees_the_paths_of_its_node(processes, prepared, tmp_path, credentials):
    spec = processes.launch("k", MINE, prepared)
    assert spec.argv == ("python", "-u", str(prepared.script / "main.py"))
    assert (spec.env["EDGEAI_SLOT_DIR"], spec.env["EDGEAI_BUS"]) == (str(tmp_path / "slot"), "mqtt://127.0.0.1:1883")
    assert spec.container is None


def test_a_container_sees_paths_of_its_own_and_reaches_its_broker_through_a_socket(containers, prepared):
    spec = containers.launch("k", MINE, prepared)
    assert spec.argv == ("python", "-u", "/edgeai/script/main.py")
    assert spec.env["EDGEAI_BUS"] == "mqtt+unix:///edgeai/bus/mqtt"
    assert spec.env["EDGEAI_SLOT_DIR"] == "/edgeai/slot"
    assert spec.container.network == "none"
    assert sorted(mount.target for mount in spec.container.mounts) == [
        "/edgeai/bus",
        "/edgeai/credentials.json",
        "/edgeai/data/digits.npz",
        "/edgeai/script",
        "/edgeai/slot/models",
    ]
    assert all(mount.read_only for mount in spec.container.mounts)


@pytest.mark.parametrize("under_test", [True, False])
def test_only_a_worker_under_test_sees_the_folder_of_what_ends_it(containers, prepared, tmp_path, under_test):
    told = {"EDGEAI_CRASH_FOLDER": str(tmp_path / "crash"), **({"EDGEAI_TEST": "1"} if under_test else {})}
    (tmp_path / "crash").mkdir()
    spec = replace(containers, env=told).launch("k", MINE, prepared)
    shown = [(mount.source, mount.target) for mount in spec.container.mounts if not mount.read_only]
    assert shown == ([(tmp_path / "crash", "/edgeai/crash")] if under_test else [])
    assert spec.env.get("EDGEAI_CRASH_FOLDER") == ("/edgeai/crash" if under_test else None)


def test_a_broker_without_a_socket_is_reached_through_the_relay(containers, prepared, tmp_path):
    there = replace(containers, bus="nats://127.0.0.1:4222")
    spec = there.launch("k", MINE, prepared)
    shown = next(mount for mount in spec.container.mounts if mount.target == "/edgeai/bus")
    assert (spec.env["EDGEAI_BUS"], shown.source) == ("nats+unix:///edgeai/bus/broker", tmp_path / "workers/bus")


def test_an_aggregation_worker_runs_the_program_of_its_image(containers, tmp_path):
    spec = containers.launch("k", replace(MINE, role=Role.AGGREGATION, script=None), Prepared(SlotDir(tmp_path)))
    assert spec.argv == ("python", "-u", "/opt/edgeai/main.py")
    assert spec.container.image == AGGREGATION.tag


def test_no_variable_holds_the_secret_and_only_the_file_does(containers, prepared):
    assert "secret" not in str(containers.launch("k", MINE, prepared).env)


async def test_the_login_that_workers_see_is_readable_for_their_group_alone(containers):
    async with containers.serving():
        shown = containers.folder / "training.json"
        assert read_credentials_file(shown).password == "secret"
        assert shown.stat().st_mode & 0o777 == 0o640


async def test_training_workers_see_a_login_of_their_own_where_there_is_one(containers, prepared, tmp_path):
    write_credentials_file(tmp_path / "trainer.json", "nats://127.0.0.1:4222", "trainer", "other")
    places = replace(containers, training_credentials=tmp_path / "trainer.json")
    aggregation = replace(MINE, role=Role.AGGREGATION)
    async with places.serving():
        logins = {
            read_credentials_file(mount.source).username
            for assignment in (MINE, aggregation)
            for mount in places.launch("k", assignment, prepared).container.mounts
            if mount.target == "/edgeai/credentials.json"
        }
    assert logins == {"trainer", "worker"}


async def test_limits_and_variables_of_the_manifest_are_handed_on(containers, prepared):
    spec = containers.launch(
        "k", needing(cpus=0.5, memory_bytes=2**29, disk_bytes=2**31, gpus=1, env={"A": "b"}), prepared
    )
    given = spec.container
    assert (given.cpus, given.memory_bytes, given.gpus, spec.env["A"]) == (0.5, 2**29, 1, "b")


async def test_without_an_image_framework_and_version_choose_ours(containers):
    await containers.check(MINE)
    with pytest.raises(PreparationProblem, match=r"numpy 1.26 in image edgeai/worker-numpy:\S+ is not >=2"):
        await containers.check(replace(MINE, framework_version=">=2"))


async def test_a_framework_without_an_image_of_ours_is_refused_by_name(containers):
    with pytest.raises(PreparationProblem, match="there is no image for frameworkType torch"):
        await containers.check(replace(MINE, framework="torch"))


async def test_an_image_that_cannot_be_had_is_refused_with_what_to_do(containers):
    with pytest.raises(PreparationProblem, match=r"image a:1 is not on edge1 .*; pull or build it there"):
        await containers.check(needing(image="a:1"))


async def test_an_engine_that_is_away_is_nobodys_fault(containers, images):
    images.away = True
    with pytest.raises(EngineUnavailable):
        await containers.check(MINE)


async def test_a_network_is_given_only_where_the_node_allows_it(containers, prepared):
    with pytest.raises(PreparationProblem, match=r"network lab is not allowed on edge1 \(allowed_networks: none\)"):
        await containers.check(needing(network="lab"))
    allowing = replace(containers, allowed_networks=("lab",))
    await allowing.check(needing(network="lab"))
    assert allowing.launch("k", needing(network="lab"), prepared).container.network == "lab"


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    (tmp_path / "vault").mkdir()
    (tmp_path / "vault/key").touch(0o644)
    (tmp_path / "outside").touch(0o644)
    (tmp_path / "vault/link").symlink_to(tmp_path / "outside")
    return tmp_path / "vault"


async def test_a_secret_is_a_file_that_is_mounted(containers, prepared, vault):
    spec = replace(containers, secrets=vault).launch("k", needing(secrets={"token": "key"}), prepared)
    assert [m.source for m in spec.container.mounts if m.target == "/edgeai/secrets/token"] == [vault / "key"]


@pytest.mark.parametrize("file", ["none", "link"])
async def test_a_secret_outside_of_the_folder_is_refused(containers, vault, file):
    with pytest.raises(PreparationProblem, match=f"secret {file} is not in the secrets folder of edge1"):
        await replace(containers, secrets=vault).check(needing(secrets={"a": file}))


async def test_a_node_without_a_secrets_folder_says_so(containers):
    with pytest.raises(PreparationProblem, match="edge1 has no secrets folder"):
        await containers.check(needing(secrets={"a": "key"}))


@pytest.mark.parametrize(
    ("needs", "name"),
    [
        ({"image": "a:1"}, "image"),
        ({"gpus": 1}, "resources"),
        ({"disk_bytes": 2**30}, "resources"),
        ({"secrets": {"a": "b"}}, "secrets"),
        ({"network": "lab"}, "network"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_a_process_cannot_keep_is_refused_by_name(processes, needs, name):
    with pytest.raises(PreparationProblem, match=f"{name} is set for work0, but edge1 starts workers as processes"):
        await processes.check(needing(**needs))


async def test_a_dataset_that_workers_cannot_read_is_named(containers, images, tmp_path):
    images.user = User(10001, 10001)
    (tmp_path / "private.npz").touch(0o600)
    with pytest.raises(PreparationProblem, match="cannot be read by workers, which run as user 10001:10001"):
        containers.seen(tmp_path / "private.npz")
