"""What the daemons are told. `config.py` makes these from files, environment and command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

READY_S = 30.0
"""How long a broker may take until it serves."""

LauncherChoice = Literal["process", "docker"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a node's workers live. The engine of `docker` is the one that DOCKER_HOST names, else the usual one.

    A task may ask for a network in `allowed_networks` and for files in `secrets_dir`.
    """

    launcher: LauncherChoice = "process"
    allowed_networks: Sequence[str] = ()
    secrets_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class PortalOptions:
    """Where the portal of `edgeai cloud` is served: `port` 0: any free one, remembered; beyond loopback only with TLS."""

    port: int
    host: str = "127.0.0.1"
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class CloudOptions:
    """`edges` may connect besides those that were added before; `port` None: any free one, remembered.

    With `nats_url` no nats-server is started; two credentials files are then needed, and the operator's for a portal.
    """

    state_dir: Path
    edges: Sequence[str] = ()
    port: int | None = None
    allowed_roots: Sequence[Path] = ()
    nats_url: str | None = None
    coordinator_credentials: Path | None = None
    worker_credentials: Path | None = None
    operator_credentials: Path | None = None
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    metrics_port: int | None = None
    """of `/metrics`, on loopback; None: there is none, 0: any, remembered"""
    portal: PortalOptions | None = None


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """`credentials` is the file that the cloud has issued for this node's bridge; `broker` auto, mosquitto or nats.

    With `mqtt_url` no broker is started; the three credentials files are then needed. `job_...`: what one incremental
    learning job may keep here, of labelled examples and of models on their way to the cloud.
    """

    node: str
    state_dir: Path
    cloud: str
    credentials: Path
    broker: Literal["auto", "mosquitto", "nats"] = "auto"
    port: int | None = None
    allowed_roots: Sequence[Path] = ()
    mqtt_url: str | None = None
    controller_credentials: Path | None = None
    bridge_credentials: Path | None = None
    worker_credentials: Path | None = None
    app_credentials: Path | None = None
    http_port: int | None = None
    """of the gateway for applications; None: there is none, 0: any, remembered"""
    metrics_port: int | None = None
    """as in CloudOptions; the bridge, a process of its own, serves its numbers at the next one"""
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    job_examples_bytes: int = 1024**3
    job_models: int = 10


@dataclass(frozen=True, slots=True)
class ControllerOptions:
    """A controller alone: `bus` is the node's broker, mqtt:// at an edge and nats:// for the node `cloud`.

    `worker_bus`: where workers reach it, if that is another address. `training_credentials`: of training workers, if theirs are
    not those of the aggregation workers.
    """

    node: str
    state_dir: Path
    bus: str
    credentials: Path
    worker_credentials: Path
    allowed_roots: Sequence[Path] = ()
    broker: str = "external"
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    worker_bus: str = ""
    training_credentials: Path | None = None
    job_examples_bytes: int = 1024**3
    job_models: int = 10
    metrics_port: int | None = None
    """only of a controller that runs alone"""


@dataclass(frozen=True, slots=True)
class BridgeOptions:
    node: str
    mqtt: str
    mqtt_credentials: Path
    nats: str
    nats_credentials: Path
    metrics_port: int | None = None
