"""Configuration of the daemons: command line options over environment over a TOML file over defaults.

Variables are `EDGEAI_CLOUD_<KEY>` and `EDGEAI_EDGE_<KEY>`; lists are written as JSON there. Relative paths in a file refer to
the folder of that file, all others to the current one. What is not known is refused by file and key.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from edgeai.cli.daemons.options import CloudOptions, EdgeOptions, LauncherChoice, PortalOptions, WorkerOptions
from edgeai.errors import ManifestError
from edgeai.resources.names import NETWORK_PATTERN, Name
from edgeai.resources.refusals import dotted, refusals
from edgeai.settings import data_folder

Port = Annotated[int, Field(ge=1, le=65535)]
PortOrAny = Annotated[int, Field(ge=0, le=65535)]
Network = Annotated[str, Field(pattern=NETWORK_PATTERN)]


def _url(*schemes: str) -> AfterValidator:
    def check(url: str) -> str:
        if not url.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise ValueError(f"must be {' or '.join(f'{scheme}://host:port' for scheme in schemes)}")
        return url

    return AfterValidator(check)


class _WorkersConfig(BaseSettings):
    """How workers live, on the cloud's node and at an edge; see WorkerOptions."""

    launcher: LauncherChoice = "process"
    allowed_networks: tuple[Network, ...] = ()
    secrets_dir: Path | None = None

    def workers(self) -> WorkerOptions:
        folder = self.secrets_dir.absolute() if self.secrets_dir else None
        return WorkerOptions(self.launcher, self.allowed_networks, folder)


class CloudConfig(_WorkersConfig):
    """What `edgeai cloud` can be told; see CloudOptions."""

    model_config = SettingsConfigDict(env_prefix="EDGEAI_CLOUD_", extra="forbid")

    state_dir: Path = Field(default_factory=lambda: data_folder() / "cloud")
    edges: tuple[Name, ...] = ()
    port: Port | None = None
    allowed_roots: tuple[Path, ...] = ()
    nats_url: Annotated[str, _url("nats")] | None = None
    coordinator_credentials: Path | None = None
    worker_credentials: Path | None = None
    operator_credentials: Path | None = None
    metrics_port: PortOrAny | None = None
    portal_port: PortOrAny | None = None
    portal_host: str = "127.0.0.1"
    portal_tls_certificate: Path | None = None
    portal_tls_key: Path | None = None
    portal_names: tuple[str, ...] = ()

    def portal(self) -> PortalOptions | None:
        if self.portal_port is None:
            return None
        certificate, key = (
            path.absolute() if path else None for path in (self.portal_tls_certificate, self.portal_tls_key)
        )
        return PortalOptions(self.portal_port, self.portal_host, certificate, key, self.portal_names)


class EdgeConfig(_WorkersConfig):
    """What `edgeai edge` can be told; see EdgeOptions."""

    model_config = SettingsConfigDict(env_prefix="EDGEAI_EDGE_", extra="forbid")

    node: Name
    cloud: Annotated[str, _url("nats")]
    credentials: Path
    state_dir: Path | None = None
    broker: Literal["auto", "mosquitto", "nats"] = "auto"
    port: Port | None = None
    allowed_roots: tuple[Path, ...] = ()
    job_examples_mib: Annotated[int, Field(ge=1, le=1024**2)] = 1024
    job_models: Annotated[int, Field(ge=1, le=1000)] = 10
    mqtt_url: Annotated[str, _url("mqtt", "mqtt+unix")] | None = None
    controller_credentials: Path | None = None
    bridge_credentials: Path | None = None
    worker_credentials: Path | None = None
    app_credentials: Path | None = None
    http_port: PortOrAny | None = None
    metrics_port: Annotated[int, Field(ge=0, le=65534)] | None = None
    """the bridge has the next one"""


_Config = TypeVar("_Config", CloudConfig, EdgeConfig)


def cloud_options(file: Path | None = None, **given: Any) -> CloudOptions:
    """Raises ManifestError naming what is wrong, and the file if it stands there. None and empty lists are not given."""
    config = _read(CloudConfig, file, given)
    _all_or_none(config, "nats_url", ("coordinator_credentials", "worker_credentials"), file)
    if config.nats_url is None and config.operator_credentials is not None:
        raise ManifestError("needs nats_url as well", file=str(file or ""), field="operator_credentials")
    if config.nats_url is not None and config.portal_port is not None and config.operator_credentials is None:
        raise ManifestError("needs operator_credentials for nats_url", file=str(file or ""), field="portal_port")
    return CloudOptions(
        state_dir=config.state_dir.absolute(),
        edges=config.edges,
        port=config.port,
        allowed_roots=_absolute(config.allowed_roots),
        nats_url=config.nats_url,
        coordinator_credentials=config.coordinator_credentials,
        worker_credentials=config.worker_credentials,
        operator_credentials=config.operator_credentials,
        workers=config.workers(),
        metrics_port=config.metrics_port,
        portal=config.portal(),
    )


def edge_options(file: Path | None = None, **given: Any) -> EdgeOptions:
    """As `cloud_options`."""
    config = _read(EdgeConfig, file, given)
    users = ("controller_credentials", "bridge_credentials", "worker_credentials")
    _all_or_none(config, "mqtt_url", users, file)
    return EdgeOptions(
        node=config.node,
        state_dir=(config.state_dir or data_folder() / config.node).absolute(),
        cloud=config.cloud,
        credentials=config.credentials.absolute(),
        broker=config.broker,
        port=config.port,
        allowed_roots=_absolute(config.allowed_roots),
        mqtt_url=config.mqtt_url,
        controller_credentials=config.controller_credentials,
        bridge_credentials=config.bridge_credentials,
        worker_credentials=config.worker_credentials,
        app_credentials=config.app_credentials,
        http_port=config.http_port,
        metrics_port=config.metrics_port,
        workers=config.workers(),
        job_examples_bytes=config.job_examples_mib * 1024**2,
        job_models=config.job_models,
    )


def _absolute(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(path.absolute() for path in paths)


def _all_or_none(config: BaseSettings, url: str, files: tuple[str, ...], file: Path | None) -> None:
    """A broker from outside needs all its credentials files, an own one none of them."""
    given = [name for name in files if getattr(config, name) is not None]
    where = str(file) if file else ""
    if getattr(config, url) is None and given:
        raise ManifestError(
            f"needs {url} as well: without it edgeai starts a broker of its own", file=where, field=given[0]
        )
    missing = [name for name in files if name not in given]
    if getattr(config, url) is not None and missing:
        raise ManifestError(f"needs {', '.join(missing)} as well", file=where, field=url)


def _read(config: type[_Config], file: Path | None, given: dict[str, Any]) -> _Config:
    given = {key: value for key, value in given.items() if value is not None and value != []}
    written = _written(file) if file else {}

    class Layered(config):  # type: ignore[valid-type, misc]
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=written)

    try:
        return Layered(**given)
    except ValidationError as error:
        path, what = refusals(error, config)[0]
        where = str(file) if file and path and path[0] in written and path[0] not in given else ""
        raise ManifestError(what, file=where, field=dotted(path)) from error
    except SettingsError as error:
        raise ManifestError(f"{error} of the environment: write a list as JSON") from error


def _written(file: Path) -> dict[str, Any]:
    """The content of a TOML file, paths made absolute. Raises ManifestError."""
    try:
        values = tomllib.loads(file.read_text())
    except FileNotFoundError as error:
        raise ManifestError("does not exist", file=str(file)) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ManifestError(f"cannot be read: {error}", file=str(file)) from error
    return {key: _placed(key, value, file.absolute().parent) for key, value in values.items()}


def _placed(key: str, value: Any, folder: Path) -> Any:
    if key in {"state_dir", "credentials", "secrets_dir"} or key.endswith(
        ("_credentials", "_tls_certificate", "_tls_key")
    ):
        return folder / value if isinstance(value, str) else value
    if key == "allowed_roots" and isinstance(value, list):
        return [folder / item if isinstance(item, str) else item for item in value]
    return value
