"""What a container engine is told about one worker, and what its answers mean: values in, values out.

`docker.py` beside it talks to the engine. Everything that makes a worker's container a cage is in `creation`, in one
place; `tests/containers/test_hardening.py` tries the bars. Must not know how an engine is reached.

What a worker sees (the rest of its file system is the image, read-only):

    /edgeai/slot           its slot directory, the only place where it may write, besides /tmp and /dev/shm (memory); how much,
                           no engine can be told: see `disk.py`
    /edgeai/script         the script bundle
    /edgeai/data/<file>    its dataset
    /edgeai/bus            a directory with the socket of the node's broker
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from edgeai.launcher.base import (
    LOG_PART_BYTES,
    MIB,
    ContainerSpec,
    ExitReason,
    ExitRecord,
    LaunchSpec,
    LogPart,
    Stats,
)

SLOT, SCRIPT, DATA, BUS = "/edgeai/slot", "/edgeai/script", "/edgeai/data", "/edgeai/bus"
RECORDS = ".container"  # in the slot directory: what the launcher remembers; hidden from the worker
OWNER, NODE, WORKER, IMAGE = "edgeai.owner", "edgeai.node", "edgeai.worker", "edgeai.image"
FIRST_INSTANT = 10**15  # offsets below are bytes of the log of earlier runs, above instants in nanoseconds

_LAST_LINE_CHARACTERS = 500
_NAME = re.compile(r"[^a-z0-9]+")
_OPEN_FILES = 4096
_SHM_BYTES = 64 * MIB
_LOST_CODE = 255  # what an engine says of a container that it did not see end
_SHARES_A_NAMESPACE = re.compile(r"host|container:.*")


@dataclass(frozen=True, slots=True)
class User:
    """Whom the worker runs as, and who owns its slot directory. Never root."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


@dataclass(frozen=True, slots=True)
class Image:
    """An image as it is on this machine. `labels` say what is in ours (`edgeai.framework`, `edgeai.framework-version`)."""

    name: str
    id: str
    labels: Mapping[str, str]
    volumes: tuple[str, ...] = ()


# --- told to the engine


def container_name(node: str, worker: str, slot: Path) -> str:
    """One name for one slot of this machine, so that the engine itself refuses a second container for it."""
    digest = hashlib.sha256(f"{node}\n{slot}".encode()).hexdigest()[:12]
    return f"edgeai-{_NAME.sub('-', f'{node}-{worker}'.lower()).strip('-')[:60]}-{digest}"


def refusal(spec: LaunchSpec, container: ContainerSpec) -> str:
    """Why this cannot be asked of an engine; empty if it can."""
    if not spec.argv:
        return "no program is given"
    if any("\0" in text for text in (*spec.argv, *spec.env, *spec.env.values())):
        return "an argument or variable holds a null byte"
    if spec.argv[0] != "python" and not posixpath.isabs(spec.argv[0]):
        return f"{spec.argv[0]!r} is neither an absolute path nor python"
    if _SHARES_A_NAMESPACE.fullmatch(container.network):
        return f"network {container.network} would share the network of another: name a network of its own"
    for mount in container.mounts:
        if not posixpath.isabs(mount.target) or posixpath.normpath(mount.target) != mount.target:
            return f"{mount.target} is not an absolute path"
        if not mount.source.exists():
            return f"{mount.source} does not exist"
        if mount.source.is_socket():
            return f"{mount.source} is a socket: mount the directory that it is in"
    return ""


def creation(
    spec: LaunchSpec, container: ContainerSpec, image: Image, *, user: User, labels: Mapping[str, str]
) -> dict[str, Any]:
    """The body of the engine's create call."""
    return {
        "Image": image.id,  # what was checked is what runs, whatever the tag means by now
        "Entrypoint": list(spec.argv),
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in ({"HOME": "/tmp", "TMPDIR": "/tmp"} | dict(spec.env)).items()],  # noqa: S108
        "WorkingDir": spec.cwd.as_posix() if spec.cwd else SLOT,
        "User": str(user),
        "Labels": {**container.labels, **labels},
        "Tty": False,
        "OpenStdin": False,
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},  # of the image: it would run beside the worker, for ever
        "HostConfig": {
            "Init": True,  # reaps orphans and hands signals on, which a first process would ignore
            "Privileged": False,
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "ShmSize": _SHM_BYTES,
            "NetworkMode": container.network,
            "PublishAllPorts": False,
            "RestartPolicy": {"Name": "no"},  # who restarts a worker is the controller
            "AutoRemove": False,
            "NanoCpus": int(container.cpus * 1e9),
            "Memory": container.memory_bytes,
            "MemorySwap": container.memory_bytes,  # the sum of both: no swap
            "PidsLimit": container.pids,
            "OomScoreAdj": 500,  # where the machine itself is short of memory, workers go first
            "Ulimits": [
                _ulimit("fsize", min(container.file_limit_bytes, container.disk_bytes)),
                _ulimit("nofile", _OPEN_FILES),
                _ulimit("core", 0),
            ],
            "LogConfig": {
                "Type": "json-file",
                "Config": {"max-size": str(max(container.log_limit_bytes // 2, 1)), "max-file": "2"},
            },
            "Tmpfs": _tmpfs(container, image),
            "Mounts": [
                _bind(str(spec.slot_dir), SLOT, read_only=False),
                *(_bind(str(mount.source.resolve()), mount.target, mount.read_only) for mount in container.mounts),
            ],
            "DeviceRequests": _gpus(container.gpus),
        },
    }


def _ulimit(name: str, limit: int) -> dict[str, Any]:
    return {"Name": name, "Soft": limit, "Hard": limit}


def _tmpfs(container: ContainerSpec, image: Image) -> dict[str, str]:
    limited = f"rw,noexec,nosuid,nodev,mode=1777,size={container.tmpfs_bytes}"
    # A volume that an image declares would be a place on disk without limit, and stay behind.
    volumes = {path: limited for path in image.volumes if path not in {each.target for each in container.mounts}}
    # A mount point cannot be removed or renamed from inside, so the worker can neither read nor replace the records.
    return {"/tmp": limited, **volumes, f"{SLOT}/{RECORDS}": "ro,noexec,nosuid,nodev,mode=0555,size=4096"}  # noqa: S108


def _bind(source: str, target: str, read_only: bool) -> dict[str, Any]:
    # What is mounted below a source on this machine was not asked for, and would be writable below a read-only one.
    options = {"Propagation": "rprivate", "NonRecursive": True}
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only, "BindOptions": options}


def _gpus(count: int) -> list[dict[str, Any]]:
    return [{"Driver": "", "Count": count, "Capabilities": [["gpu"]]}] if count else []


# --- told by the engine


def image_of(name: str, answer: Mapping[str, Any]) -> Image:
    config = answer.get("Config") or {}
    return Image(name, answer["Id"], config.get("Labels") or {}, tuple(config.get("Volumes") or ()))


def ending(state: Mapping[str, Any], last_line: str, *, same_boot: bool, memory_bytes: int = 0) -> ExitRecord:
    """How a container ended. `memory_bytes`: its limit; 0: not known.

    The first process of a container is the engine's init, which tells a death by signal as 128 + its number, as a shell does.
    """
    code = int(state["ExitCode"])
    if state.get("OOMKilled") and code != 0:  # with 0, a child was killed and the program went on
        return ExitRecord(ExitReason.OOM, signal="SIGKILL", last_line=last_line, limit=memory_bytes)
    if code == _LOST_CODE and not same_boot:
        return ExitRecord(ExitReason.LOST, last_line=last_line)
    if name := _signal_name(code - 128):
        return ExitRecord(ExitReason.KILLED, signal=name, last_line=last_line)
    return ExitRecord(ExitReason.EXITED, code=code, last_line=last_line)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def stats_of(answer: Mapping[str, Any]) -> Stats | None:
    """None: the container does not run (any more)."""
    memory = answer.get("memory_stats") or {}
    if "usage" not in memory:
        return None
    details = memory.get("stats") or {}
    # The name depends on the version of control groups. Cached files count as used, but are no need of the worker.
    reclaimable = details.get("total_inactive_file", details.get("inactive_file", 0))
    return Stats(
        cpu_s=answer["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
        memory_bytes=max(memory["usage"] - reclaimable, 0),
        memory_limit_bytes=memory["limit"],
        pids=(answer.get("pids_stats") or {}).get("current", 0),
    )


# --- logs: a frame is an instant and a piece of text, of a whole line or, of a long one, up to 16 KB


@dataclass(frozen=True, slots=True)
class Frame:
    instant: int  # nanoseconds; the pieces of one line share it
    text: bytes


def frames(pieces: Iterable[str]) -> list[Frame]:
    """What the engine sends when asked for time stamps; a piece that has none is left out."""
    found = []
    for piece in pieces:
        stamp, _, text = piece.partition(" ")
        if (instant := _instant(stamp)) is not None:
            found.append(Frame(instant, text.encode()))
    return found


def _instant(stamp: str) -> int | None:
    """RFC 3339 with nanoseconds."""
    try:
        seconds = datetime.fromisoformat(f"{stamp[:19]}+00:00").timestamp()
        return int(seconds) * 10**9 + int(stamp[20:].rstrip("Z").ljust(9, "0"))
    except ValueError:
        return None


def since(offset: int) -> str:
    """An offset as the engine wants it: seconds, with a fraction."""
    return f"{offset // 10**9}.{offset % 10**9:09d}"


def log_part(found: Iterable[Frame], offset: int, ended: bool) -> LogPart:
    """The first part of these frames, in whole lines; a line that is longer than a part is cut."""
    text, next_offset = bytearray(), offset
    for instant, pieces in groupby(found, key=lambda frame: frame.instant):
        line = b"".join(piece.text for piece in pieces)[:LOG_PART_BYTES]
        if text and len(text) + len(line) > LOG_PART_BYTES:
            return LogPart(bytes(text), offset, next_offset, False)
        text += line
        next_offset = instant + 1
    return LogPart(bytes(text), offset, next_offset, ended)


def tail(found: Sequence[Frame], size_bytes: int) -> list[Frame]:
    """The frames that hold the last bytes; the first one is cut to fit."""
    kept: list[Frame] = []
    for frame in reversed(found):
        if size_bytes <= 0:
            break
        kept.append(Frame(frame.instant, frame.text[-size_bytes:]))
        size_bytes -= len(frame.text)
    return kept[::-1]


def last_line(found: Sequence[Frame]) -> str:
    lines = b"".join(frame.text for frame in found).decode("utf-8", "replace").splitlines()
    return next((line.strip()[:_LAST_LINE_CHARACTERS] for line in reversed(lines) if line.strip()), "")
