"""The portal of `edgeai cloud`: a process of its own, so that whatever it is asked never delays the coordinator.

It is a child like the broker: started again when it ends, adopted by the next start of the daemon, ended by `edgeai stop`. It
enters the cloud as the operator does whose context lies in the state directory.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from edgeai.cli.daemons.brokers import context_file
from edgeai.cli.daemons.life import Announcement
from edgeai.cli.daemons.options import READY_S, CloudOptions, PortalOptions
from edgeai.errors import NotFound
from edgeai.events.address import CLOUD
from edgeai.launcher.children import Child, Children, ChildSpec, read_record, record_path
from edgeai.portal.place import Place, read_place
from edgeai.portal.settings import PortalSettings

log = structlog.get_logger()

PART = "portal"
_POLL_S = 0.1


def check_portal(options: CloudOptions) -> None:
    """Before anything is started: the portal would be refused again and again. Raises Refused."""
    if (asked := options.portal) is not None:
        settings = PortalSettings(
            options.state_dir / PART, asked.host, asked.port, asked.tls_certificate, asked.tls_key, tuple(asked.names)
        )
        settings.check()


@asynccontextmanager
async def portal_child(options: CloudOptions, children: Children, ready: Announcement) -> AsyncIterator[None]:
    """Keep it running; without one in the options, end the one that an earlier start had. Says when it serves, and where."""
    if options.portal is None:
        await _end_earlier(children, options.state_dir)
        yield
        return
    child = await _start(options, options.portal, children)
    telling = asyncio.create_task(_tell(child, options.state_dir / PART, ready))
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _start(options: CloudOptions, asked: PortalOptions, children: Children) -> Child:
    argv = [sys.executable, "-m", "edgeai", PART, "--no-link", "--state-dir", str(options.state_dir / PART)]
    argv += ["--host", asked.host, "--port", str(asked.port)]
    for option, file in (("--tls-certificate", asked.tls_certificate), ("--tls-key", asked.tls_key)):
        argv += [option, str(file)] if file is not None else []
    argv += [word for name in asked.names for word in ("--name", name)]
    env = {"EDGEAI_CONTEXT": str(context_file(options))}
    spec = ChildSpec(PART, CLOUD, argv, options.state_dir / "portal.log", env=env)
    record = read_record(record_path(options.state_dir, PART, CLOUD))
    if record is not None and record.argv != tuple(argv):
        await _end_earlier(children, options.state_dir)  # it was asked for otherwise
    return await children.start(spec)


async def _end_earlier(children: Children, state_dir: Path) -> None:
    record = read_record(record_path(state_dir, PART, CLOUD))
    if record is not None and record.runs():
        await children.start(ChildSpec(PART, CLOUD, record.argv, state_dir / "portal.log"))  # adopts it
        await children.stop(PART, CLOUD)


async def _tell(child: Child, folder: Path, ready: Announcement) -> None:
    """A portal that does not come up keeps the rest of the cloud from nothing."""
    try:
        async with asyncio.timeout(READY_S):
            while (place := _place_of(child, folder)) is None:  # noqa: ASYNC110 - it is a file of another process
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        log.error("portal_not_up", log_file=str(child.spec.log_file))
        ready.begun(PART)
    else:
        ready.begun(PART, portal=place.url)


def _place_of(child: Child, folder: Path) -> Place | None:
    """Where this child serves, not where an earlier one did."""
    try:
        place = read_place(folder)
    except NotFound:
        return None
    return place if place.process == child.pid else None
