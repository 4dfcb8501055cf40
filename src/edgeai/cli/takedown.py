"""The end of everything in a state directory, whoever started it: children from the registry, workers from their slots.

Used when a playground ends, and by a daemon whose playground was killed. Daemons that stop by themselves do none of this:
their workers, brokers and bridges wait for the next start. What is to be stopped is read from disk, so it also covers what a
daemon that was killed has left.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import structlog

from edgeai.launcher.base import Launcher
from edgeai.launcher.children import read_record, stop_all_recorded
from edgeai.launcher.docker import DockerLauncher
from edgeai.launcher.process import ProcessLauncher
from edgeai.launcher.records import has_container

log = structlog.get_logger()

TEMPORARY_VARIABLE = "EDGEAI_TEMPORARY"
"""Names the folder of a playground that is not to outlive it."""
TEMPORARY_PREFIX = "edgeai-demo-"
_GRACE_S = 5.0
_WORKER_GRACE_S = 2.0


async def take_down(state_dir: Path) -> list[str]:
    """Stop every child and every worker of this state directory and of those directly below it; returns their names."""
    stopped = await stop_all_recorded(state_dir, _GRACE_S)
    # Only now is there no controller that would start a worker again.
    workers = await _stop_workers(await asyncio.to_thread(_slots, state_dir))
    log.info("taken_down", state_dir=str(state_dir), children=stopped, workers=workers)
    return [*stopped, *workers]


def _slots(state_dir: Path) -> list[Path]:
    return [*state_dir.glob("slots/*/*"), *state_dir.glob("*/slots/*/*")]


async def _stop_workers(slots: list[Path]) -> list[str]:
    processes, containers = ProcessLauncher(), DockerLauncher("")

    stopped: list[str] = []

    async def stop(slot: Path) -> None:
        launcher: Launcher = containers if has_container(slot) else processes
        running = await launcher.adopt(slot.name, slot)
        if running is not None:
            await launcher.stop(running, _WORKER_GRACE_S)
            stopped.append(f"worker {slot.parent.name}/{slot.name}")
        await launcher.remove(slot)

    for outcome in await asyncio.gather(*(stop(slot) for slot in slots), return_exceptions=True):
        if isinstance(outcome, BaseException):
            log.error("worker_not_stopped", reason=repr(outcome))
    return sorted(stopped)


def remove_temporary(folder: Path) -> None:
    """Remove the folder of a demo that was killed, if this process is the last one that it started."""
    if not folder.name.startswith(TEMPORARY_PREFIX):
        return
    for path in folder.glob("run/*.json"):
        record = read_record(path)
        if record is None or record.process.pid == os.getpid() or not record.runs():
            path.unlink(missing_ok=True)
    if not any(folder.glob("run/*.json")):
        remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove the folder of a demo. Blocks.

    It stays while it names containers, which an engine that was away could not remove: the next demo finds them there.
    """
    left = [slot for slot in _slots(folder) if has_container(slot)]
    if left:
        log.error("containers_left", folder=str(folder), workers=sorted(slot.name for slot in left))
    else:
        shutil.rmtree(folder, ignore_errors=True)
