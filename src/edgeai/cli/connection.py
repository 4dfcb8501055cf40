"""A command's connection to the cloud that the context names."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from edgeai import tracing
from edgeai.cli.contexts import led_on
from edgeai.cli.outcome import say
from edgeai.client import Cloud, connect
from edgeai.errors import NotFound
from edgeai.logs import configure

_T = TypeVar("_T")


def on_cloud(work: Callable[[Cloud], Awaitable[_T]]) -> _T:
    """Connect, do the work, return its result. Raises NotFound without a context, BusUnavailable without a cloud."""
    configure(os.environ.get("EDGEAI_LOG") or "error")
    tracing.start("edgeai-cli", tell=say)

    async def connected() -> _T:
        try:
            async with connect(service="edgeai-cli") as cloud:
                return await work(cloud)
        except NotFound as error:
            raise led_on(error) from error

    return asyncio.run(connected())
