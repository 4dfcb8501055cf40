"""Our worker images on this machine: which are there, and `edgeai images build`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from edgeai.cli.signals import Interrupted, until_signalled
from edgeai.errors import LaunchError, NotFound
from edgeai.launcher import building
from edgeai.launcher.docker import DockerLauncher, ImageProgress, engine_url
from edgeai.launcher.images import BASE, DAEMON, IMAGES, WorkerImage
from edgeai.logs import configure


async def require_images(*wanted: WorkerImage) -> None:
    """Before anything is started. Raises EngineUnavailable; LaunchError naming an image that is missing."""
    launcher = DockerLauncher("this machine", pull=False)
    await launcher.check()
    missing = await missing_images(launcher, wanted)
    if missing:
        folders = " ".join(image.folder for image in missing)
        raise LaunchError(
            f"{', '.join(image.tag for image in missing)} is not on this machine; run `edgeai images build {folders}`"
        )


async def missing_images(launcher: DockerLauncher, wanted: Sequence[WorkerImage] = IMAGES) -> list[WorkerImage]:
    """Raises EngineUnavailable."""
    there = await launcher.present([image.tag for image in wanted])
    return [image for image in wanted if image.tag not in there]


def build_images(names: Sequence[str], wheelhouse: Path | None, base: str) -> int:
    """Build images (those of workers, if none is named) and print their tags. Returns the exit code.

    Raises:
        NotFound, LaunchError: as `launcher.building.build`.
    """
    configure("error")
    wanted = [_named(name) for name in names] or list(IMAGES)
    with _view() as view:
        rows: dict[str, TaskID] = {}

        def show(progress: ImageProgress) -> None:
            if progress.image not in rows:
                rows[progress.image] = view.add_task(progress.image, total=None, what="")
                if not view.console.is_terminal:
                    print(f"building {progress.image} at {engine_url()}", file=sys.stderr, flush=True)
            what = progress.what.splitlines()[0][:60] if progress.what else ""
            view.update(rows[progress.image], completed=progress.current, total=progress.total or None, what=what)

        work = building.build(wanted, wheelhouse=wheelhouse, base=base or BASE, progress=show)
        try:
            tags = asyncio.run(until_signalled(work))
        except Interrupted as interrupted:
            return interrupted.exit_code
    print("\n".join(tags))
    return 0


def _named(name: str) -> WorkerImage:
    known = (*IMAGES, DAEMON)
    for image in known:
        if name in {image.folder, image.name, image.tag}:
            return image
    raise NotFound("image", name, "there is " + ", ".join(image.folder for image in known))


def _view() -> Progress:
    from rich.console import Console

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[what]}"))
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)
