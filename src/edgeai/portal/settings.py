"""What the portal is told at its start, and what it refuses to start with."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from edgeai.errors import Refused

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class PortalSettings:
    """`state_dir` is the portal's own folder: tokens, sessions, links (hashed) and the audit log.

    `port` 0 takes any free one. `allowed_hosts` are further names under which browsers reach the portal; loopback names and
    `host` are always among them. Both TLS files are needed wherever `host` is not loopback.
    """

    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    session_s: float = 12 * 3600.0
    login_attempts: int = 10
    login_window_s: float = 60.0
    max_body_bytes: int = 256 * 1024
    max_streams: int = 256
    max_downloads: int = 4
    pace_s: float = 0.25
    """What changes within this time reaches a page as one change."""

    @property
    def tls(self) -> bool:
        return self.tls_certificate is not None and self.tls_key is not None

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def host_names(self) -> frozenset[str]:
        own = () if self.host in ("0.0.0.0", "::", "") else (self.host,)  # noqa: S104 - compared, not bound
        return frozenset(name.lower() for name in (*LOOPBACK_NAMES, *own, *self.allowed_hosts))

    def url(self, port: int) -> str:
        """Where a browser on this machine (or, bound elsewhere, on the network) finds the portal."""
        name = self.host if self.host not in ("0.0.0.0", "::", "") else (*self.allowed_hosts, "localhost")[0]  # noqa: S104
        return f"{'https' if self.tls else 'http'}://{f'[{name}]' if ':' in name else name}:{port}"

    def check(self) -> None:
        """Raises Refused for what must not be served."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise Refused("TLS needs both a certificate file and a key file")
        if not self.loopback and not self.tls:
            raise Refused(
                f"the portal would be reachable from other machines on {self.host}: "
                "give it a TLS certificate and key, or bind it to 127.0.0.1"
            )
        for path in (self.tls_certificate, self.tls_key):
            if path is not None and not path.is_file():
                raise Refused(f"TLS file {path} does not exist")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
