"""What a worker sees of its node: one value for each way of starting workers.

A process sees the node as the controller does. A container sees the paths of `launcher.container`, the broker through a Unix
socket, and nothing else. The service asks here where things are to be put and what a program is to be told; it never asks
which launcher it has. Nothing here starts a worker.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

import structlog

from edgeai.bus.credentials import read_credentials_file, write_credentials_file
from edgeai.bus.relay import Relay
from edgeai.controller.scripts import PreparationProblem, require_framework, require_version
from edgeai.controller.threads import to_its_end
from edgeai.errors import EngineUnavailable, LaunchError, Refused
from edgeai.events.catalogue import Assignment, Needs, Role
from edgeai.launcher import container
from edgeai.launcher.base import ContainerSpec, LaunchSpec, Mount
from edgeai.launcher.container import Image, User
from edgeai.launcher.images import AGGREGATION, FRAMEWORK_VERSION, image_for
from edgeai.launcher.slots import SlotDir
from edgeai.settings import shipped

log = structlog.get_logger()

CREDENTIALS, SECRETS = "/edgeai/credentials.json", "/edgeai/secrets"
_AGGREGATION_PROGRAM = "/opt/edgeai/main.py"
_PULL_PAUSES_S = (1.0, 4.0, 10.0)
"""A registry may be away for a moment; after that somebody has to look."""
_CRASHES = "/edgeai/crash"
"""Where a worker under test finds what ends it (`edgeai.crashpoints`); real ones have no such folder."""
_FOLDERS_FOR_ALL, _FILES_FOR_ALL = 0o755, 0o644


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was brought for one worker. `script` is the folder of its script, `dataset` its file, on this machine."""

    slot: SlotDir
    script: Path | None = None
    dataset: Path | None = None


class Places(Protocol):
    """Where a node's workers live."""

    def serving(self) -> AbstractAsyncContextManager[None]:
        """Keep up what workers need besides their launcher, for as long as the controller runs. Raises LaunchError."""

    async def check(self, assignment: Assignment) -> None:
        """See that this node can do what is asked. Raises PreparationProblem; EngineUnavailable: ask again later."""

    @property
    def sealed(self) -> bool:
        """Whether no worker can write where scripts lie."""

    def notes(self, slot: SlotDir) -> Path:
        """Where the controller puts what it remembers of a slot."""

    def script(self, slot: SlotDir) -> Path:
        """Where the script of this slot is unpacked to."""

    def models(self, slot: SlotDir) -> Path:
        """Where the controller puts models for this slot's worker."""

    def seen(self, dataset: Path) -> str:
        """The path of a dataset as the worker sees it. Raises PreparationProblem if it could not read it."""

    def open_up(self, path: Path) -> None:
        """Let workers read a file or folder that was put where they see it. Blocks."""

    def launch(self, key: str, assignment: Assignment, prepared: Prepared) -> LaunchSpec:
        """What the launcher is to start. Raises PreparationProblem."""


def identity(node: str, assignment: Assignment) -> dict[str, str]:
    """What every worker is told of itself, wherever it lives."""
    return {
        **assignment.needs.env,
        "EDGEAI_TASK": assignment.task,
        "EDGEAI_WORKER": assignment.worker,
        "EDGEAI_NODE": node,
    }


# --- processes


@dataclass(frozen=True, slots=True)
class ProcessPlaces:
    """Workers are processes of this machine: they see what the controller sees."""

    node: str
    bus: str
    credentials: Path
    env: Mapping[str, str] = field(default_factory=dict)
    training_credentials: Path | None = None
    """for training workers, where their login is another"""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        yield

    async def check(self, assignment: Assignment) -> None:
        for name, value in _only_in_containers(assignment.needs).items():
            if value:
                raise PreparationProblem(
                    f"{name} is set for {assignment.worker}, but {self.node} starts workers as processes, which cannot keep"
                    f' it: remove it from the manifest, or set launcher = "docker" on {self.node}'
                )
        if assignment.role is not Role.AGGREGATION:
            require_framework(assignment.framework, assignment.framework_version, self.node)

    @property
    def sealed(self) -> bool:
        return False  # a script's folder is where it works

    def notes(self, slot: SlotDir) -> Path:
        return slot.path

    def script(self, slot: SlotDir) -> Path:
        return slot.script

    def models(self, slot: SlotDir) -> Path:
        return slot.models

    def seen(self, dataset: Path) -> str:
        return str(dataset)

    def open_up(self, path: Path) -> None:
        return

    def launch(self, key: str, assignment: Assignment, prepared: Prepared) -> LaunchSpec:
        login = self.credentials
        if assignment.role is not Role.AGGREGATION:
            login = self.training_credentials or login
        if prepared.script is None:
            boot, cwd = shipped("workers/aggregation/main.py"), prepared.slot.output
        else:
            boot, cwd = prepared.script / assignment.boot_file, prepared.script
        environment = {
            **self.env,
            **identity(self.node, assignment),
            "EDGEAI_BUS": self.bus,
            "EDGEAI_CREDENTIALS_FILE": str(login),
            "EDGEAI_SLOT_DIR": str(prepared.slot.path),
        }
        return LaunchSpec(key, prepared.slot.path, ("python", "-u", str(boot)), environment, cwd)


def _only_in_containers(needs: Needs) -> dict[str, Any]:
    return {
        "image": needs.image,
        "resources": needs.cpus or needs.memory_bytes or needs.disk_bytes or needs.gpus,
        "secrets": needs.secrets,
        "network": needs.network,
    }


# --- containers


class Images(Protocol):
    """What is asked of the container launcher here."""

    @property
    def user(self) -> User: ...

    async def ensure_image(self, name: str, image_id: str = "") -> Image: ...


@dataclass(frozen=True, slots=True)
class ContainerPlaces:
    """Workers are containers without network; see the package's docs/containers.md.

    `bus` is the broker's url on this machine. With `mqtt+unix://` the folder of that socket is shown to workers, else a relay
    leads to the broker. `folder` is ours, for what all workers of this node see. Networks that a task may ask for are in
    `allowed_networks`, files that it may refer to in `secrets`.
    """

    node: str
    bus: str
    credentials: Path
    folder: Path
    images: Images
    env: Mapping[str, str] = field(default_factory=dict)
    allowed_networks: Sequence[str] = ()
    secrets: Path | None = None
    training_credentials: Path | None = None
    """for training workers, where their login is another"""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        user = self.images.user
        _shared_folder(self.folder, user.gid)
        await to_its_end(self._show, self.credentials, self._credentials(Role.AGGREGATION))
        await to_its_end(self._show, self.training_credentials or self.credentials, self._credentials(Role.TRAINING))
        if self._own_socket is not None:
            yield
            return
        _shared_folder(self._relay.parent, user.gid)
        where = urlsplit(self.bus)
        async with Relay(self._relay, where.hostname or "127.0.0.1", where.port or 0, gid=user.gid):
            yield

    async def check(self, assignment: Assignment) -> None:
        needs = assignment.needs
        if needs.network and needs.network not in self.allowed_networks:
            allowed = ", ".join(self.allowed_networks) or "none"
            raise PreparationProblem(
                f"network {needs.network} is not allowed on {self.node} (allowed_networks: {allowed}): add it there, or "
                "remove it from the manifest"
            )
        self._secret_mounts(needs)
        image = await self._ensured(_image_of(assignment))
        version = image.labels.get(FRAMEWORK_VERSION, "")
        if version and assignment.framework_version:
            require_version(assignment.framework, version, assignment.framework_version, f"in image {image.name}")

    async def _ensured(self, name: str) -> Image:
        for pause_s in (*_PULL_PAUSES_S, None):
            try:
                return await self.images.ensure_image(name)
            except EngineUnavailable:
                raise
            except LaunchError as error:
                if pause_s is None:
                    raise PreparationProblem(_with_advice(name, error)) from error
                log.warning("image_not_there", image=name, reason=str(error))
            await asyncio.sleep(pause_s)
        raise AssertionError

    @property
    def sealed(self) -> bool:
        return True

    def notes(self, slot: SlotDir) -> Path:
        return self._hidden(slot)

    def script(self, slot: SlotDir) -> Path:
        return self._hidden(slot) / "script"

    def models(self, slot: SlotDir) -> Path:
        return self._hidden(slot) / "models"

    def seen(self, dataset: Path) -> str:
        _require_readable(dataset, self.images.user, self.node)
        return f"{container.DATA}/{dataset.name}"

    def open_up(self, path: Path) -> None:
        """Only through a mount: the folders above are closed to everybody else."""
        for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
            each.chmod(_FOLDERS_FOR_ALL if each.is_dir() else _FILES_FOR_ALL)

    def launch(self, key: str, assignment: Assignment, prepared: Prepared) -> LaunchSpec:
        needs = assignment.needs
        mounts = [Mount(self._credentials(assignment.role), CREDENTIALS), Mount(self._socket.parent, container.BUS)]
        mounts += self._secret_mounts(needs)
        if prepared.script is None:
            program, cwd = _AGGREGATION_PROGRAM, prepared.slot.output.name
            cwd = f"{container.SLOT}/{cwd}"
        else:
            program, cwd = f"{container.SCRIPT}/{assignment.boot_file}", container.SCRIPT
            mounts += [Mount(prepared.script, container.SCRIPT)]
            # In a folder that the worker cannot replace: what the controller does there stays there.
            mounts += [Mount(self.models(prepared.slot), f"{container.SLOT}/{prepared.slot.models.name}")]
        if prepared.dataset is not None:
            mounts.append(Mount(prepared.dataset, self.seen(prepared.dataset)))
        told = dict(self.env)
        crashes = told.pop("EDGEAI_CRASH_FOLDER", "")
        if crashes and told.get("EDGEAI_TEST") == "1":
            told["EDGEAI_CRASH_FOLDER"] = _CRASHES
            mounts.append(Mount(Path(crashes), _CRASHES, read_only=False))
        environment = {
            **told,
            **identity(self.node, assignment),
            "EDGEAI_BUS": self._bus_inside,
            "EDGEAI_CREDENTIALS_FILE": CREDENTIALS,
            "EDGEAI_SLOT_DIR": container.SLOT,
        }
        labels = {"edgeai.task": assignment.task}
        spec = ContainerSpec(_image_of(assignment), mounts=tuple(mounts), labels=labels, gpus=needs.gpus)
        if needs.cpus:
            spec = replace(spec, cpus=needs.cpus)
        if needs.memory_bytes:
            spec = replace(spec, memory_bytes=needs.memory_bytes)
        if needs.disk_bytes:
            spec = replace(spec, disk_bytes=needs.disk_bytes)
        if needs.network:
            spec = replace(spec, network=needs.network)
        return LaunchSpec(key, prepared.slot.path, ("python", "-u", program), environment, Path(cwd), container=spec)

    # --- its own paths

    def _credentials(self, role: Role) -> Path:
        """Programs of users share one login, whatever they do."""
        shared = role if role is Role.AGGREGATION else Role.TRAINING
        return self.folder / f"{shared.value}.json"

    def _show(self, login: Path, to_workers: Path) -> None:
        found = read_credentials_file(login)
        write_credentials_file(to_workers, self._bus_inside, found.username, found.password)
        os.chown(to_workers, -1, self.images.user.gid)
        to_workers.chmod(0o640)

    @property
    def _relay(self) -> Path:
        return self.folder / "bus" / "broker"

    @property
    def _own_socket(self) -> Path | None:
        """The broker's, if it has one."""
        where = urlsplit(self.bus)
        return Path(where.path) if where.scheme.endswith("+unix") else None

    @property
    def _socket(self) -> Path:
        return self._own_socket or self._relay

    @property
    def _bus_inside(self) -> str:
        scheme = urlsplit(self.bus).scheme.removesuffix("+unix")
        return f"{scheme}+unix://{container.BUS}/{self._socket.name}"

    @staticmethod
    def _hidden(slot: SlotDir) -> Path:
        """A part of the slot that the worker neither sees nor owns, but for what is mounted from it."""
        return slot.path / container.RECORDS

    def _secret_mounts(self, needs: Needs) -> list[Mount]:
        return [Mount(self._secret(path), f"{SECRETS}/{name}") for name, path in sorted(needs.secrets.items())]

    def _secret(self, path: str) -> Path:
        if self.secrets is None:
            raise PreparationProblem(
                f"secret {path} is asked for, but {self.node} has no secrets folder: set secrets_dir there, or remove it"
                " from the manifest"
            )
        root = self.secrets.resolve()
        found = (root / PurePosixPath(path)).resolve()
        if not found.is_relative_to(root) or not found.is_file():
            raise PreparationProblem(f"secret {path} is not in the secrets folder of {self.node}: put it there")
        _require_readable(found, self.images.user, self.node)
        return found


def _image_of(assignment: Assignment) -> str:
    """Raises PreparationProblem."""
    if assignment.needs.image:
        return assignment.needs.image
    if assignment.role is Role.AGGREGATION:
        return AGGREGATION.tag
    try:
        return image_for(assignment.framework).tag
    except Refused as error:
        raise PreparationProblem(str(error)) from error


def _with_advice(image: str, error: LaunchError) -> str:
    ours = image.startswith("edgeai/")
    return f"{error}; `edgeai images build` makes it" if ours else f"{error}; pull or build it there, or change image"


def _require_readable(path: Path, user: User, node: str) -> None:
    """By the bits of the file itself: nobody walks through folders to a file that is mounted."""
    found = path.stat()
    bit = stat.S_IROTH
    if found.st_uid == user.uid:
        bit = stat.S_IRUSR
    elif found.st_gid == user.gid:
        bit = stat.S_IRGRP
    if not found.st_mode & bit:
        raise PreparationProblem(
            f"{path} on {node} cannot be read by workers, which run as user {user}: "
            f"chmod o+r, or chgrp {user.gid} and chmod g+r"
        )


def _shared_folder(folder: Path, gid: int) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chown(folder, -1, gid)
    folder.chmod(0o750)
