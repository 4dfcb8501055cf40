"""`edgeai node add`: lets one more edge into the embedded broker of this machine's cloud."""

from __future__ import annotations

import asyncio
from pathlib import Path

from edgeai.bus.embedded import NatsCloud
from edgeai.cli.outcome import say
from edgeai.errors import NotFound
from edgeai.events.address import CLOUD
from edgeai.launcher.children import read_record, record_path
from edgeai.logs import configure


def add_node(name: str, state_dir: Path) -> Path:
    """Issue the credentials of an edge and return their file. Idempotent.

    Raises:
        NotFound: no cloud has its state there. LaunchError: its broker does not take the new user.
    """
    configure("error")
    if not (state_dir / "brokers" / CLOUD).is_dir():
        hint = "start `edgeai cloud` first, or name its folder with --state-dir (or --config)"
        raise NotFound("state of a cloud", str(state_dir), hint)
    broker = NatsCloud(state_dir)
    record = read_record(record_path(state_dir, "broker", CLOUD))
    if record is not None and record.runs():
        asyncio.run(broker.add_edge(name, record.process.pid))
    else:
        broker.edge_credential(name)
        say(f"the cloud's broker does not run; it lets {name} in from its next start on")
    return broker.edge_credentials_file(name)
