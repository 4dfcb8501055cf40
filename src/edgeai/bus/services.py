"""Workers as NATS services, so that `nats micro` tools see them: name, metadata, and one endpoint that tells the status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import nats.errors
import structlog
from nats.micro import add_service
from nats.micro.request import Request

from edgeai.bus.nats import NatsBus
from edgeai.events.address import CLOUD, Address, Direction, EventClass

log = structlog.get_logger()


async def announce_service(bus: NatsBus, task: str, worker: str, describe: Callable[[], dict[str, Any]]) -> None:
    """Be a service `edgeai-<task level>` until cancelled; announced anew when the bus has a new connection.

    The endpoint `status` is an ordinary address of class request, so that the servers' permissions need know nothing of it.
    """
    subject = Address(CLOUD, Direction.DOWN, EventClass.REQUEST, "status", task, worker).subject()
    announced: list[Any] = []
    again = asyncio.Event()

    async def on_connect() -> None:
        again.set()

    bus.on_connect(on_connect)

    async def answer(request: Request) -> None:
        await request.respond(json.dumps(describe()).encode())

    client = None
    try:
        while True:
            await again.wait()
            again.clear()
            if client is bus.connection:
                continue
            client = bus.connection
            try:
                service = await add_service(
                    client, name=f"edgeai-{task}", version="1.0.0", description="aggregation worker"
                )
                await service.add_endpoint(name="status", subject=subject, handler=answer)
            except nats.errors.Error as error:
                log.warning("service_not_announced", task=task, cause=str(error))
                client = None
                continue
            announced = [service]
    finally:
        for service in announced:
            if not client or client.is_connected:
                await service.stop()
