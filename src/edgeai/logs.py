"""Logging: structlog to standard error, one event a line; key=value for people, JSON with `EDGEAI_LOG_FORMAT=json`.

Events are constants in snake_case, everything variable is a key. Payloads, arrays and secrets are never logged.
"""

from __future__ import annotations

import logging
import os
import re
import sys

import structlog

_LINE = re.compile(r"(\x1b\[[\d;]*m)*\d{4}-\d\d-\d\dT[\d:.]+Z(\x1b\[[\d;]*m)* \[")
"""How a line for people begins: an instant, then the level."""


def configure(level: str | None = None) -> None:
    """Set up logging of this process. `level` defaults to EDGEAI_LOG or info."""
    wanted = (level or os.environ.get("EDGEAI_LOG") or "info").upper()
    number = logging.getLevelNamesMapping().get(wanted, logging.INFO)
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if os.environ.get("EDGEAI_LOG_FORMAT") == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info if number > logging.DEBUG else _keep,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def is_log_line(text: str) -> bool:
    """Whether this is a line of ours, and not one that a worker's own program printed."""
    return _LINE.match(text) is not None or (text.startswith("{") and '"event": "' in text and '"level": "' in text)


def _keep(
    _logger: structlog.types.WrappedLogger, _name: str, event: structlog.types.EventDict
) -> structlog.types.EventDict:
    return event
