"""The portal: `edgeai portal` for the cloud of a context, and the one that `edgeai up` brings along."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from edgeai import metrics
from edgeai.cli.signals import Interrupted, until_signalled
from edgeai.client import connect
from edgeai.logs import configure
from edgeai.portal.app import one_time_link, serve
from edgeai.portal.settings import PortalSettings
from edgeai.settings import Context, data_folder, read_context


def run_portal(settings: PortalSettings, *, link: bool = True) -> int:
    """Serve the cloud of the context until a signal. `link`: print one that logs in.

    Raises:
        NotFound: there is no context. Refused: not safe as asked for. PortTaken.
    """
    configure(os.environ.get("EDGEAI_LOG") or "warning")
    context = read_context()
    with contextlib.suppress(Interrupted):
        asyncio.run(until_signalled(_run(context, settings, link=link)))
    return 0


async def _run(context: Context, settings: PortalSettings, *, link: bool) -> None:
    async with serving(context, settings) as url:
        print(f"ready portal={url}", flush=True)
        if link:
            print(f"log in once, within ten minutes: {one_time_link(settings.state_dir, url)}", flush=True)
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def serving(context: Context, settings: PortalSettings) -> AsyncIterator[str]:
    """Serve while the context is entered; yields the portal's address. Raises what `portal.app.serve` raises."""
    started: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def cloud() -> connect:
        return connect(context.url, credentials_file=context.credentials_file, service="edgeai-portal")

    watching = asyncio.create_task(metrics.watch_loop_lag())
    running = asyncio.create_task(serve(cloud, settings, started=started.set_result))
    try:
        either: set[asyncio.Future[Any]] = {running, started}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        yield started.result()
    finally:
        running.cancel()
        watching.cancel()
        await asyncio.gather(running, watching, return_exceptions=True)


def settings_of(
    state_dir: Path | None,
    *,
    host: str,
    port: int,
    tls_certificate: Path | None,
    tls_key: Path | None,
    names: list[str],
) -> PortalSettings:
    return PortalSettings(
        (state_dir or data_folder() / "portal").absolute(),
        host=host,
        port=port,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        allowed_hosts=tuple(names),
    )
