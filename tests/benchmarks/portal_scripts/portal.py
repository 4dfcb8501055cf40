"""The portal of `tests/benchmarks/portal.py`: served as `edgeai portal` serves it, and a probe of how late its loop is.

    python portal.py nats://host:port STATE_DIR

Says its url as JSON; `begin` and `end` on stdin are answered by what the probe has seen between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from pathlib import Path

from edgeai.client import connect
from edgeai.portal.app import PortalSettings, serve

PROBE_S = 0.02


class Probe:
    def __init__(self) -> None:
        self.lags: list[float] = []

    async def run(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(PROBE_S)
            self.lags.append(time.monotonic() - before - PROBE_S)

    def take(self) -> dict[str, float]:
        ordered, self.lags = sorted(self.lags) or [0.0], []
        p99, most = ordered[int(0.99 * len(ordered))], ordered[-1]
        return {"p99_ms": round(1000 * p99, 1), "max_ms": round(1000 * most, 1)}


async def main(url: str, state_dir: Path) -> None:
    probe, loop = Probe(), asyncio.get_running_loop()

    def say(document: dict[str, object]) -> None:
        print(json.dumps(document), flush=True)

    def hear() -> None:
        for word in sys.stdin.readline().split():
            found = probe.take()
            if word == "end":
                say(dict(found))

    settings = PortalSettings(state_dir)
    running = asyncio.create_task(serve(lambda: connect(url), settings, started=lambda found: say({"url": found})))
    probing = asyncio.create_task(probe.run())
    loop.add_signal_handler(signal.SIGTERM, running.cancel)
    loop.add_reader(sys.stdin.fileno(), hear)
    with contextlib.suppress(asyncio.CancelledError):
        await running
    probing.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
