"""The whole contract between a worker and whoever starts it: six variables (docs/worker-environment.md).

| variable | holds |
| --- | --- |
| EDGEAI_TASK | level of the task in addresses: its name and eight characters of its uid |
| EDGEAI_WORKER | name of this worker |
| EDGEAI_NODE | name of the node |
| EDGEAI_BUS | `mqtt://host:port`, `nats://host:port`, or a Unix socket: `mqtt+unix:///path`, `nats+unix:///path` |
| EDGEAI_CREDENTIALS_FILE | JSON file with `username` and `password`, readable for this worker only |
| EDGEAI_SLOT_DIR | the slot directory (edgeai.launcher.slots) |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeai.bus.base import Bus
from edgeai.bus.credentials import client_id_of, read_credentials_file
from edgeai.errors import LaunchError
from edgeai.events.envelope import stamped
from edgeai.launcher.slots import SlotDir

VARIABLES = (
    "EDGEAI_TASK",
    "EDGEAI_WORKER",
    "EDGEAI_NODE",
    "EDGEAI_BUS",
    "EDGEAI_CREDENTIALS_FILE",
    "EDGEAI_SLOT_DIR",
)


@dataclass(frozen=True, slots=True)
class WorkerEnvironment:
    task: str
    worker: str
    node: str
    bus_url: str
    credentials_file: str
    slot: SlotDir

    @staticmethod
    def read(environ: Mapping[str, str] = os.environ) -> WorkerEnvironment:
        """Raises LaunchError naming what is missing."""
        missing = [name for name in VARIABLES if not environ.get(name)]
        if missing:
            raise LaunchError(
                f"this program is to be started by an edgeai controller: {', '.join(missing)} is not set"
                " (apply a task whose trainScriptBootFile is this script)"
            )
        task, worker, node, url, credentials, slot_dir = (environ[name] for name in VARIABLES)
        return WorkerEnvironment(task, worker, node, url, credentials, SlotDir(Path(slot_dir)))

    @property
    def source(self) -> str:
        return f"{self.node}/{self.task}/{self.worker}"

    def open_bus(self) -> Bus:
        """The bus of this worker's node, not connected yet; what it sends carries the token of this run.

        Raises LaunchError for an unknown scheme.
        """
        scheme = self.bus_url.partition("://")[0]
        found = read_credentials_file(Path(self.credentials_file))
        token = self.slot.read_token()

        def stamp(payload: bytes) -> bytes:
            return stamped(payload, token) if token else payload

        if scheme in {"mqtt", "mqtt+unix"}:
            from edgeai.bus.mqtt import MqttBus

            name = f"{self.node}-{self.task}-{self.worker}"
            client_id = client_id_of(name, token or found.password.encode())
            return MqttBus(
                self.bus_url, username=found.username, password=found.password, client_id=client_id, stamp=stamp
            )
        if scheme in {"nats", "nats+unix"}:
            from edgeai.bus.nats import NatsBus

            return NatsBus(
                self.bus_url, username=found.username, password=found.password, name=self.source, stamp=stamp
            )
        raise LaunchError(f"EDGEAI_BUS={self.bus_url}: the scheme must be mqtt or nats, with +unix for a socket")
