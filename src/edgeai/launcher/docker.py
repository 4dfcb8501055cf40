"""Workers in containers: the only door to aiodocker, and so to a container engine.

What a container is told and what its answers mean is in `container.py`; here is what a controller does with it: start,
find again, wait, stop, read the log, remove. A launcher holds no state and no connection, so any number of them may look
at one slot, before and after a restart of the controller or of the engine. What is remembered is in `records.py`.

A container is ours if it carries the owner of the slot's record. Labels and names prove nothing: anybody who may use the
engine can give them to a container. Must not know what the program does, nor what a task is.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import structlog

from edgeai.errors import EngineUnavailable, LaunchError
from edgeai.launcher import container as told
from edgeai.launcher import shim
from edgeai.launcher.base import (
    LOG_PART_BYTES,
    ContainerSpec,
    ExitReason,
    ExitRecord,
    LaunchSpec,
    LogPart,
    Running,
    Stats,
)
from edgeai.launcher.container import Frame, Image, User
from edgeai.launcher.disk import Allowed, Excess, excess
from edgeai.launcher.records import Record, Records, hand_over

if TYPE_CHECKING:
    from aiodocker import Docker
    from aiodocker.containers import DockerContainer
    from aiohttp import ClientTimeout

log = structlog.get_logger()
T = TypeVar("T")

WORKER_USER = User(10001, 10001)

_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock", str(Path.home() / ".docker/run/docker.sock"))
_CONNECT_S, _ANSWER_S = 5.0, 60.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.1, 5.0
_PRUNE_TRIES = 50
_LAST_FRAMES = 50
_DISK_S, _DISK_PAUSE = 1.0, 4.0  # a disk is measured every second; if that takes long, after four times as long
_NOT_FOUND, _CONFLICT, _FAILED, _UNREACHABLE = 404, 409, 500, 900  # the last one is aiodocker's own


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """How far a pull or a build came. `current` and `total` count bytes of one layer, or steps; 0 if unknown."""

    image: str
    what: str
    current: int = 0
    total: int = 0


Progress = Callable[[ImageProgress], None]


def engine_url(url: str = "") -> str:
    """Where the engine is to be found: as given, else DOCKER_HOST, else its usual sockets."""
    found = (f"unix://{path}" for path in _SOCKETS if Path(path).exists())
    return url or os.environ.get("DOCKER_HOST", "") or next(found, f"unix://{_SOCKETS[0]}")


@asynccontextmanager
async def engine(url: str) -> AsyncIterator[Docker]:
    """A connection to the engine. What it refuses is a LaunchError in its own words.

    Raises:
        EngineUnavailable: it does not answer; LaunchError: aiodocker is not installed.
    """
    try:
        import aiodocker
        import aiohttp
    except ImportError as error:
        raise LaunchError("aiodocker is not installed: run `pip install 'edgeai[docker]'`") from error
    patience = aiohttp.ClientTimeout(total=_ANSWER_S, sock_connect=_CONNECT_S)
    try:
        docker = aiodocker.Docker(url, timeout=patience)
    except ValueError as error:
        raise LaunchError(f"{url} is not the address of a Docker engine: {error}") from error
    try:
        async with _closing_answers(docker, patience):
            yield docker
    except aiodocker.DockerError as error:
        if error.status == _UNREACHABLE:
            raise EngineUnavailable(url) from error
        raise LaunchError(
            _one_line(error.message) or f"{url} answers {error.status} and says no more: is it a Docker engine?"
        ) from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise EngineUnavailable(url, _one_line(str(error))) from error
    except TimeoutError as error:
        raise EngineUnavailable(url, "no answer in time") from error
    finally:
        await docker.close()


@asynccontextmanager
async def _closing_answers(docker: Docker, patience: ClientTimeout) -> AsyncIterator[None]:
    """aiodocker never closes an answer that nobody reads to its end, such as a stream that we leave."""
    import aiohttp

    answers: list[aiohttp.ClientResponse] = []

    async def keep(_session: object, _context: object, end: aiohttp.TraceRequestEndParams) -> None:
        answers.append(end.response)

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(keep)
    session = docker.session
    async with aiohttp.ClientSession(
        connector=docker.connector, connector_owner=False, timeout=patience, trace_configs=[trace]
    ) as traced:
        docker.session = traced
        try:
            yield
        finally:
            docker.session = session
            for answer in answers:
                answer.close()


async def build(url: str, tag: str, context: Path, arguments: Mapping[str, str]) -> AsyncGenerator[str]:
    """Build an image from a tar file and yield what the engine says. Raises LaunchError."""
    async with engine(url) as docker:
        with context.open("rb") as file:
            answers = docker.images.build(
                fileobj=file, encoding="identity", tag=tag, buildargs=arguments, forcerm=True, stream=True
            )
            async with _stream(answers) as lines:
                async for line in lines:
                    if text := str(line.get("stream", "")).strip():
                        yield text


async def end_build_step(url: str, label: str) -> None:
    """Remove the containers that carry this label. Raises LaunchError."""
    async with engine(url) as docker:
        for made in await docker.containers.list(all=True, filters={"label": [label]}):
            with _ignoring(_CONFLICT, _NOT_FOUND):
                await made.delete(force=True)


async def prune_build(url: str, label: str) -> None:
    """Remove the nameless images that carry this label. Raises LaunchError.

    Those that a container is made from stay: a build that was cut short may have one for another moment, so it is tried again.
    """
    for _ in range(_PRUNE_TRIES):
        await end_build_step(url, label)
        async with engine(url) as docker:
            nameless = {"dangling": ["true"], "label": [label]}
            await docker.images.prune(filters=nameless)
            left = await docker.images.list(filters=nameless)
        if not left:
            return
        await asyncio.sleep(_FIRST_RETRY_S)


def default_user() -> User:
    """A user of their own if this process may give files away (root), else this process' user."""
    return WORKER_USER if os.geteuid() == 0 else User(os.geteuid(), os.getegid())


class DockerLauncher:
    """Starts workers as containers. Implements `launcher.base.Launcher`.

    `user` is whom workers run as, by default `default_user`. `progress` is told of pulls.
    """

    def __init__(
        self,
        node: str,
        *,
        url: str = "",
        user: User | None = None,
        pull: bool = True,
        progress: Progress = lambda _: None,
    ) -> None:
        self.url = engine_url(url)
        self.user = user or default_user()
        self._node, self._pull, self._progress = node, pull, progress

    # --- the engine and its images

    async def check(self) -> str:
        """The version of the engine. Raises EngineUnavailable."""
        async with engine(self.url) as docker:
            return str((await docker.version())["Version"])

    async def ensure_image(self, name: str, image_id: str = "") -> Image:
        """The image as it is here; pulled if it is missing.

        Raises:
            LaunchError: it is not here and cannot be pulled, or has another id.
        """
        async with engine(self.url) as docker:
            image = await _find_image(docker, name)
            if image is None:
                await self._pull_image(docker, name)
                image = await _find_image(docker, name)
        if image is None:
            raise LaunchError(f"image {name} is not on {self._node}, although its pull succeeded")
        if image_id and image.id != image_id:
            raise LaunchError(f"image {name} on {self._node} is {image.id}, not {image_id}, which is asked for")
        return image

    async def present(self, names: Sequence[str]) -> set[str]:
        """Those of these images that are here. Raises EngineUnavailable."""
        async with engine(self.url) as docker:
            return {name for name in names if await _find_image(docker, name) is not None}

    async def _pull_image(self, docker: Docker, name: str) -> None:
        missing = f"image {name} is not on {self._node}"
        bare = name.partition("@")[0]
        if bare != name and (other := await _find_image(docker, bare)) is not None:
            missing += f" (what is here as {bare} is {other.id})"
        if not self._pull or name.startswith("sha256:"):
            raise LaunchError(f"{missing} and cannot be pulled: this node pulls no images")
        log.info("image_missing", image=name)
        with _explaining(f"{missing} and cannot be pulled"):
            await self._follow_pull(docker, name)
        log.info("image_pulled", image=name)

    async def _follow_pull(self, docker: Docker, name: str) -> None:
        async with _stream(docker.images.pull(name, stream=True)) as lines:
            async for line in lines:
                detail = line.get("progressDetail") or {}
                current, total = detail.get("current", 0), detail.get("total", 0)
                self._progress(ImageProgress(name, str(line.get("status", "")), current, total))

    # --- one worker

    async def start(self, spec: LaunchSpec) -> Running:
        spec = replace(spec, slot_dir=spec.slot_dir.absolute())
        try:
            if (running := await self.adopt(spec.name, spec.slot_dir)) is not None:
                return running
            if spec.container is None:
                raise LaunchError("no image is named for it")
            if why := told.refusal(spec, spec.container) or self._shows_engine(spec.container):
                raise LaunchError(why)
            image = await self.ensure_image(spec.container.image, spec.container.image_id)
            async with Records.locked(spec.slot_dir, create=True) as slot:
                return await self._start(spec, spec.container, image, slot)
        except EngineUnavailable:
            raise
        except (LaunchError, OSError) as error:
            raise LaunchError(f"{spec.name} could not be started: {error}") from error

    async def _start(self, spec: LaunchSpec, container: ContainerSpec, image: Image, slot: Records) -> Running:
        if (running := await self.adopt(spec.name, spec.slot_dir)) is not None:
            return running  # another launcher was faster
        await self._clear(slot)
        slot.forget_exit()
        name = told.container_name(self._node, spec.name, spec.slot_dir)
        record = Record(
            secrets.token_hex(16),
            name,
            "",
            shim.boot(),
            container.log_limit_bytes,
            container.disk_bytes,
            container.entries,
        )
        labels = {told.OWNER: record.owner, told.NODE: self._node, told.WORKER: spec.name, told.IMAGE: image.name}
        slot.write(record)  # before there is a container: what is found later can be told from a foreign one
        try:
            await asyncio.to_thread(hand_over, spec.slot_dir, self.user)
            async with engine(self.url) as docker:
                body = told.creation(spec, container, image, user=self.user, labels=labels)
                made = await _to_its_end(_create(docker, name, body))
                slot.write(replace(record, id=made.id))
                await made.start()
                state = (await made.show())["State"]
        except (LaunchError, OSError) as error:
            await self._forget(slot)
            if container.gpus and "device driver" in str(error):
                raise LaunchError(
                    f"{self._node} has no GPU that its Docker engine can give to a container: remove resources.gpus,"
                    " or choose another node"
                ) from error
            raise
        log.info("worker_started", worker=spec.name, container=name, image=image.name, pid=state["Pid"])
        return Running(spec.name, spec.slot_dir, state["Pid"])

    async def adopt(self, name: str, slot_dir: Path) -> Running | None:
        record = Records(slot_dir).read()
        if record is None:
            return None
        async with engine(self.url) as docker:
            found = await _find(docker, record)
        return Running(name, slot_dir, found["State"]["Pid"]) if found and found["State"]["Running"] else None

    async def wait(self, running: Running) -> ExitRecord:
        slot = Records(running.slot_dir)
        record = slot.read()
        if record is None:
            return slot.read_exit() or ExitRecord(ExitReason.LOST)
        keeping = asyncio.create_task(self._keep_within_disk(running, slot, record))
        try:
            return await self._wait(running, slot, record)
        finally:
            keeping.cancel()

    async def _wait(self, running: Running, slot: Records, record: Record) -> ExitRecord:
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                async with engine(self.url) as docker:
                    if ended := await self._ended(docker, slot, record):
                        return ended
                    retry_s = _FIRST_RETRY_S
                    await docker.containers.container(record.id or record.name).wait()
            except LaunchError as error:
                # The engine is being restarted, and nobody tells when it is back; or the container was removed meanwhile.
                log.info("wait_interrupted", worker=running.name, reason=str(error), retry_s=retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _LONGEST_RETRY_S)

    async def _keep_within_disk(self, running: Running, slot: Records, record: Record) -> None:
        """End the container when its slot holds more than it may. Written down first: what is decided outlives us."""
        found, pause_s = slot.read_excess(record.owner), _DISK_S
        while record.disk_bytes or record.entries:
            try:
                if found is None:
                    await asyncio.sleep(pause_s)  # also at first: whoever is started again may put its place in order
                    began = time.monotonic()
                    found = await asyncio.to_thread(_excess, running, record)
                    pause_s = max(_DISK_S, _DISK_PAUSE * (time.monotonic() - began))
                if found is not None:
                    log.warning("disk_limit_exceeded", worker=running.name, reason=found.reason, limit=found.limit)
                    await asyncio.to_thread(slot.write_excess, found, record.owner)
                    await self._signal(running, "SIGKILL")
                    await asyncio.sleep(_DISK_S)
            except (LaunchError, OSError) as error:
                log.warning("disk_not_measured", worker=running.name, reason=str(error))
                await asyncio.sleep(_DISK_S)

    async def last_exit(self, slot_dir: Path) -> ExitRecord | None:
        slot = Records(slot_dir)
        record = slot.read()
        if record is None:
            return slot.read_exit()
        async with engine(self.url) as docker:
            return await self._ended(docker, slot, record)

    async def stop(self, running: Running, grace_s: float) -> ExitRecord:
        await self._signal(running, "SIGTERM")
        try:
            async with asyncio.timeout(grace_s):
                record = await self.wait(running)
        except TimeoutError:
            await self._signal(running, "SIGKILL")
            record = await self.wait(running)
        log.info("worker_stopped", worker=running.name, reason=record.reason, code=record.code, signal=record.signal)
        return record

    async def remove(self, slot_dir: Path) -> None:
        if Records(slot_dir).read() is not None:
            async with Records.locked(slot_dir) as slot:
                await self._forget(slot)

    async def stats(self, running: Running) -> AsyncGenerator[Stats]:
        record = Records(running.slot_dir).read()
        if record is None:
            return
        async with engine(self.url) as docker:
            if await _find(docker, record) is None:
                return
            async with _stream(docker.containers.container(record.id).stats()) as answers:
                async for answer in answers:
                    if (stats := told.stats_of(answer)) is None:
                        return
                    yield stats

    # --- its log

    async def read_log(self, slot_dir: Path, offset: int = 0) -> LogPart:
        slot, asked = Records(slot_dir), offset
        if 0 <= offset < told.FIRST_INSTANT:
            earlier = await asyncio.to_thread(slot.read_earlier, offset)
            if earlier.text:
                return earlier
            offset = told.FIRST_INSTANT
        elif offset > told.FIRST_INSTANT:
            missed = [frame for frame in await asyncio.to_thread(slot.read_last_frames) if frame.instant >= offset]
            if missed:
                return told.log_part(missed, offset, False)
        record = slot.read()
        if record is None:
            return await asyncio.to_thread(_rest_of, slot, offset)
        async with engine(self.url) as docker:
            found = await _find(docker, record)
            if found is None:
                return await asyncio.to_thread(_rest_of, slot, offset)
            ended = not found["State"]["Running"] and found["State"]["Status"] != "created"
            if offset >= 0:
                first, whole = await _first_frames(docker, record, offset)
                if not first:
                    return LogPart(b"", asked, asked, ended)  # what it prints may be among the earlier runs by then
                return told.log_part(first, offset, ended and whole)
            last = told.tail(await _last_frames(docker, record, -offset), -offset)
        missing = -offset - sum(len(frame.text) for frame in last)
        if missing > 0 and (earlier := await asyncio.to_thread(slot.read_earlier, -missing)).text:
            return earlier
        return told.log_part(last, last[0].instant if last else told.FIRST_INSTANT, ended)

    # --- what several of them need

    async def _ended(self, docker: Docker, slot: Records, record: Record) -> ExitRecord | None:
        """How it ended, also written down; None if it runs."""
        if (known := slot.read_exit(record.owner)) is not None:
            return known
        found = await _find(docker, record)
        if not record.id or (found is not None and found["State"]["Status"] == "created"):
            return ExitRecord(ExitReason.LOST)  # its start was cut short, or is under way: nothing to write down
        if found is None:
            ended = ExitRecord(ExitReason.LOST)
        elif found["State"]["Running"]:
            return None
        else:
            line = ""
            with _ignoring(_FAILED):  # of a log that cannot be read we lose the last line, not the ending
                line = told.last_line([frame async for frame in _frames(docker, record, tail=_LAST_FRAMES)])
            memory_bytes = (found.get("HostConfig") or {}).get("Memory", 0)
            same_boot = record.boot == shim.boot()
            ended = told.ending(found["State"], line, same_boot=same_boot, memory_bytes=memory_bytes)
            if ended.reason is ExitReason.KILLED and (why := slot.read_excess(record.owner)) is not None:
                ended = replace(ended, reason=why.reason, limit=why.limit)
        await asyncio.to_thread(slot.write_exit, ended, record.owner)
        return ended

    async def _signal(self, running: Running, name: str) -> None:
        record = Records(running.slot_dir).read()
        if record is None:
            return
        async with engine(self.url) as docker:
            found = await _find(docker, record)
            if found is None or not found["State"]["Running"]:
                return
            made = docker.containers.container(found["Id"])
            if found["State"].get("Paused"):
                await made.unpause()
            with _ignoring(_CONFLICT, _NOT_FOUND):  # it has ended
                await made.kill(signal=name)

    async def _clear(self, slot: Records) -> None:
        """Make room for the next container of this slot: keep the log of the last one, remove it."""
        record = slot.read()
        if record is None:
            return
        async with engine(self.url) as docker:
            if await _find(docker, record) is not None:
                text, last = bytearray(), list[Frame]()
                with _ignoring(_FAILED):  # a log that cannot be read is lost; the worker starts all the same
                    async for frame in _frames(docker, record):
                        text += frame.text
                    last = await _last_frames(docker, record, LOG_PART_BYTES)
                await asyncio.to_thread(slot.append_earlier, text, record.log_limit_bytes, last)
        await self._forget(slot)

    async def _forget(self, slot: Records) -> None:
        """Remove the container of this slot, then what is known of it."""
        record = slot.read()
        if record is not None:
            async with engine(self.url) as docker:
                if (found := await _find(docker, record)) is not None:
                    with _ignoring(_CONFLICT, _NOT_FOUND):  # its removal is under way, or done
                        await docker.containers.container(found["Id"]).delete(force=True, v=True)
            slot.forget()

    def _shows_engine(self, container: ContainerSpec) -> str:
        """Why a mount would hand the engine, and with it the machine, to the worker; empty if none does."""
        if not self.url.startswith("unix://"):
            return ""
        socket = Path(self.url.removeprefix("unix://")).resolve()
        shown = [mount for mount in container.mounts if socket.is_relative_to(mount.source.resolve())]
        return f"{shown[0].source} holds the socket of the Docker engine" if shown else ""


def _rest_of(slot: Records, offset: int) -> LogPart:
    """Of a log whose container is gone: what is left are the earlier runs. Blocks."""
    return replace(slot.read_earlier(offset), ended=True) if offset < 0 else LogPart(b"", offset, offset, True)


def _excess(running: Running, record: Record) -> Excess | None:
    """Measured twice before it counts: files that are moved or deleted meanwhile may be seen where they are no more. Blocks."""
    allowed, found = Allowed(record.disk_bytes, record.entries), None
    for _ in range(2):
        found = excess(running.slot_dir, told.RECORDS, allowed, pid=running.pid, container=record.id)
        if found is None:
            break
    return found


# --- talking to the engine


async def _find_image(docker: Docker, name: str) -> Image | None:
    """None if it is not here. A digest may also be the id of the image that has this name: what was built here has no other."""
    bare, _, digest = name.partition("@")
    for reference in (name, bare) if digest else (name,):
        with _ignoring(_NOT_FOUND):
            image = told.image_of(name, await docker.images.inspect(reference))
            if reference == name or image.id == digest:
                return image
    return None


async def _create(docker: Docker, name: str, body: Mapping[str, Any]) -> DockerContainer:
    from aiodocker import DockerError

    try:
        return await docker.containers.create(body, name=name)
    except DockerError as error:
        if error.status != _CONFLICT:
            raise
        raise LaunchError(
            f"a container {name} is there that this slot did not start; look at it with `docker inspect {name}`,"
            f" then remove it with `docker rm -f {name}`"
        ) from error


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Also when cancelled: what an engine has begun to make comes all the same, and who removes it must find it there."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def _find(docker: Docker, record: Record) -> dict[str, Any] | None:
    """The container of this record as the engine describes it; None if there is none, or it is not ours."""
    with _ignoring(_NOT_FOUND):
        found: dict[str, Any] = await docker.containers.container(record.id or record.name).show()
        if (found["Config"].get("Labels") or {}).get(told.OWNER) == record.owner:
            return found
        log.warning("container_not_ours", container=record.name, id=found["Id"])
    return None


async def _frames(docker: Docker, record: Record, **options: Any) -> AsyncGenerator[Frame]:
    """What it has printed so far, as it comes: who leaves early has read no more, whatever the size of the log."""
    from aiodocker.multiplexed import multiplexed_result_stream

    wanted = {"stdout": True, "stderr": True, "timestamps": True, "follow": False, **options}
    # Its `log` either gathers everything in memory, or goes on for as long as the container runs.
    async with (
        docker._query(f"containers/{record.id or record.name}/logs", params=wanted) as answer,
        aclosing(multiplexed_result_stream(answer)) as pieces,  # type: ignore[no-untyped-call]
    ):
        async for piece in pieces:
            for frame in told.frames([piece]):
                yield frame


async def _first_frames(docker: Docker, record: Record, offset: int) -> tuple[list[Frame], bool]:
    """Those of one part of a log, and the beginning of the next; True if nothing follows them yet."""
    kept, size_bytes = [], 0
    async with aclosing(_frames(docker, record, since=told.since(offset))) as found:
        async for frame in found:
            kept.append(frame)
            size_bytes += len(frame.text)
            if size_bytes > LOG_PART_BYTES:
                return kept, False
    return kept, True


async def _last_frames(docker: Docker, record: Record, size_bytes: int) -> list[Frame]:
    """Those that hold the last bytes of a log."""
    kept: deque[Frame] = deque()
    held = 0
    async for frame in _frames(docker, record, tail=size_bytes):  # as many lines: none is shorter than a byte
        kept.append(frame)
        held += len(frame.text)
        while held - len(kept[0].text) >= size_bytes:
            held -= len(kept.popleft().text)
    return list(kept)


def _stream(answers: AsyncIterator[dict[str, Any]]) -> aclosing[AsyncGenerator[dict[str, Any]]]:
    """Every stream of aiodocker is a generator, although its types do not say so, and has to be closed."""
    return aclosing(cast("AsyncGenerator[dict[str, Any]]", answers))


@contextmanager
def _ignoring(*statuses: int) -> Iterator[None]:
    from aiodocker import DockerError

    try:
        yield
    except DockerError as error:
        if error.status not in statuses:
            raise


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Put a refusal of the engine into a sentence; its absence stays what it is."""
    from aiodocker import DockerError

    try:
        yield
    except DockerError as error:
        if error.status == _UNREACHABLE:
            raise
        raise LaunchError(f"{what}: {_one_line(error.message)}") from error


def _one_line(text: str) -> str:
    return " ".join(text.split())
