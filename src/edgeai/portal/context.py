"""What all parts of one portal share: settings, read model, who may come in, the audit log, and what is open right now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from edgeai import metrics
from edgeai.portal.access import Access, Attempts
from edgeai.portal.audit import AuditLog
from edgeai.portal.live import Live
from edgeai.portal.problems import Problem
from edgeai.portal.settings import PortalSettings


@dataclass(slots=True)
class Gate:
    """Lets at most `limit` in; the next one is refused instead of kept waiting."""

    what: str
    limit: int
    inside: int = 0

    def enter(self) -> None:
        """Raises Problem 503."""
        if self.inside >= self.limit:
            raise Problem(
                503, f"{self.inside} {self.what} are open already: try again later", headers={"Retry-After": "5"}
            )
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        self.enter()
        try:
            yield
        finally:
            self.leave()


@dataclass(slots=True)
class Portal:
    """Made by `app.create_app`."""

    settings: PortalSettings
    live: Live
    access: Access
    audit: AuditLog
    attempts: Attempts
    streams: Gate = field(init=False)
    downloads: Gate = field(init=False)
    log_requests: Gate = field(init=False)

    def __post_init__(self) -> None:
        self.streams = Gate("streams", self.settings.max_streams)
        self.downloads = Gate("downloads", self.settings.max_downloads)
        self.log_requests = Gate("requests for logs", 64)

    def problems(self) -> list[str]:
        """Why the portal is not ready, one sentence each."""
        return [*self.live.problems(), *filter(None, (self.audit.problem,))]

    def stream_opened(self) -> None:
        self.streams.enter()
        metrics.stream_opened()

    def stream_closed(self) -> None:
        self.streams.leave()
        metrics.stream_closed()
