"""Builds our images through the engine's API: with progress, with the edgeai that runs, and leaving nothing but the image.

The Dockerfiles are in `workers/` and `brokers/`, and build on a normal machine with `docker build` as well. What the engine is
given is in `packing.py`, which images there are in `images.py`. Must not know how an engine is reached (`docker.py`).
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from edgeai.errors import EngineUnavailable, LaunchError
from edgeai.launcher import docker
from edgeai.launcher.docker import ImageProgress
from edgeai.launcher.images import BASE, IMAGES, TENSORFLOW, WorkerImage
from edgeai.launcher.packing import framework_in, packed, wheels_for

LABEL = "edgeai.build"
"""Of what a build leaves without a name: its first stage, which is as large as the image. Its value belongs to one build."""
_SAID_LINES = 200
_LONGEST_STEP_S = 60.0


async def build(
    images: Sequence[WorkerImage] = IMAGES,
    *,
    url: str = "",
    wheelhouse: Path | None = None,
    base: str = BASE,
    progress: Callable[[ImageProgress], None] = lambda _: None,
) -> list[str]:
    """Build images, one after the other, and return their tags. `base` stands in for the stock Python image.

    Raises:
        NotFound: the wheelhouse holds nothing; EngineUnavailable; LaunchError: an image cannot be built, why, what to do.
    """
    for image in images:
        wheels = wheels_for(image, wheelhouse)
        arguments = {"BASE": base} | ({"OFFLINE": "1"} if wheelhouse else {})
        if found := framework_in(image, wheels):
            arguments |= {"FRAMEWORK_VERSION": found[1]}
            arguments |= {"TENSORFLOW": found[0]} if image is TENSORFLOW else {}
        progress(ImageProgress(image.tag, "packing what it is made of"))
        with packed(image, wheels, wheelhouse) as context:
            await _Build(docker.engine_url(url), image, wheelhouse, base, progress).run(context, arguments)
    return [image.tag for image in images]


class _Build:
    """One build of one image."""

    def __init__(
        self,
        engine: str,
        image: WorkerImage,
        wheelhouse: Path | None,
        base: str,
        progress: Callable[[ImageProgress], None],
    ) -> None:
        self._engine, self._image, self._progress = engine, image, progress
        self._wheelhouse, self._base = wheelhouse, base
        self._id = secrets.token_hex(8)
        self._said: deque[str] = deque(maxlen=_SAID_LINES)
        self._heard = asyncio.Event()

    async def run(self, context: Path, arguments: Mapping[str, str]) -> None:
        reading = asyncio.ensure_future(self._follow(context, {**arguments, "BUILD": self._id}))
        try:
            await asyncio.shield(reading)
        except asyncio.CancelledError:
            await self._cut_short(reading)
            raise
        except EngineUnavailable:
            raise
        except LaunchError as error:
            why = explain(str(error), self._said, self._image, self._wheelhouse, self._base)
            raise LaunchError(f"image {self._image.tag} cannot be built: {why}") from error
        finally:
            with suppress(LaunchError):  # `docker image prune` remains
                await docker.prune_build(self._engine, f"{LABEL}={self._id}")

    async def _follow(self, context: Path, arguments: Mapping[str, str]) -> None:
        step, steps = 0, 0
        async with aclosing(docker.build(self._engine, self._image.tag, context, arguments)) as lines:
            async for text in lines:
                line = _COLOURS.sub("", text).strip()
                self._said.append(line)
                self._heard.set()
                step, steps = step_of(line) or (step, steps)
                self._progress(ImageProgress(self._image.tag, line, step, steps))

    async def _cut_short(self, reading: asyncio.Future[None]) -> None:
        """The engine ends the step that it is in, whoever listens, and keeps what it made: so listen until then."""
        self._heard.clear()
        with suppress(LaunchError):
            await docker.end_build_step(self._engine, f"{LABEL}={self._id}")
        heard: asyncio.Future[Any] = asyncio.ensure_future(self._heard.wait())
        await asyncio.wait((heard, reading), timeout=_LONGEST_STEP_S, return_when=asyncio.FIRST_COMPLETED)
        for task in (heard, reading):
            task.cancel()
        await asyncio.gather(heard, reading, return_exceptions=True)


def step_of(line: str) -> tuple[int, int] | None:
    """From `Step 3/14 : RUN ...`."""
    number, slash, total = line.removeprefix("Step ").partition(" ")[0].partition("/")
    return (int(number), int(total)) if slash and number.isdigit() and total.isdigit() else None


# --- why an image cannot be built

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_COMMAND = re.compile(r"The command '/bin/sh -c (.*)' returned a non-zero code: (\d+)", re.DOTALL)
_FROM = re.compile(r"Step \d+/\d+ : FROM ")
_NO_WHEEL = re.compile(r"No matching distribution found for (\S+)")
_UNREACHABLE = re.compile(
    r"connection broken by|confirming the ssl certificate|Temporary failure resolving", re.IGNORECASE
)
_FULL = re.compile(r"no space left on device", re.IGNORECASE)
_ENGINES_OWN = ("Step ", "--->", "Removing intermediate container")


def explain(error: str, said: Sequence[str], image: WorkerImage, wheelhouse: Path | None, base: str) -> str:
    """One sentence for a person, with what to do, from what the engine says and what the build step said before."""
    text = "\n".join((*said, error))
    missing = _NO_WHEEL.search(text)
    if _FULL.search(text):
        return "the disk of the Docker engine is full; `docker system df` shows what takes it"
    if said and _FROM.match(said[-1]):
        return f"{base} is not here and cannot be pulled ({error}); load it, or name another one with --base"
    if missing and wheelhouse is not None:
        fill = f"pip wheel --wheel-dir {wheelhouse / image.folder} '{missing[1]}'"
        return f"the wheelhouse has no {missing[1]} for the Python of {base}; with that Python, `{fill}` puts it there"
    if _UNREACHABLE.search(text):
        return "its build step has no network; build it from files with --wheelhouse FOLDER (docs/containers.md)"
    if missing:
        return f"there is no {missing[1]} for the Python of {base}"
    last = [line for line in said if line and not line.startswith(_ENGINES_OWN)][-1:]
    return ": ".join((_COMMAND.sub(lambda found: f"`{found[1][:60]}` returned code {found[2]}", error), *last))
