"""Who may come in: tokens, sessions and one-time links, kept hashed, one small file each, in the portal's state directory.

    <state-dir>/tokens/<sha256 of the token>     for programs and for the login page; until revoked
    <state-dir>/sessions/<sha256 of the cookie>  after a login; survive a restart of the portal, end by themselves
    <state-dir>/links/<sha256 of the link>       good for one login within ten minutes

Secrets have 256 random bits, so a plain digest hides them and a lookup by digest tells nothing by its time. One file each
makes every change atomic and visible to a portal that runs: whoever unlinks a link's file has used it, and `edgeai up` (another
process) makes a link by creating one. Knows nothing of HTTP; `guard` does.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

from edgeai.errors import NotFound, Refused
from edgeai.resources.names import checked_name
from edgeai.store.files import write_whole

LINK_S = 600.0
SESSIONS_LIMIT = 2000
TOKENS_LIMIT = 1000
_ADDRESSES_LIMIT = 10_000
_SECRET = re.compile(r"[A-Za-z0-9_-]{20,200}")


class Role(IntEnum):
    """Each may do what those before it may: look; apply, pause, delete, roll back; manage tokens and read the audit log."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        return self.name.lower()

    @staticmethod
    def named(word: str) -> Role:
        """Raises Refused."""
        try:
            return Role[word.upper()]
        except KeyError as error:
            raise Refused(f"there is no role {word[:40]!r}; there is viewer, operator or admin") from error


@dataclass(frozen=True, slots=True)
class Grant:
    """What a file says: whose it is, what they may do, and when it ends (seconds since 1970; None: when revoked)."""

    name: str
    role: str
    created: float
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `cookie` is the session's secret, empty for a bearer token."""

    name: str
    role: Role
    cookie: str = ""

    @property
    def csrf_token(self) -> str:
        """What a page of this session must send back with everything that changes something."""
        return hmac.new(self.cookie.encode(), b"edgeai csrf", "sha256").hexdigest() if self.cookie else ""


class Access:
    """The files below one state directory."""

    def __init__(self, state_dir: Path, wall: Callable[[], float] = time.time) -> None:
        self._tokens, self._sessions, self._links = (state_dir / name for name in ("tokens", "sessions", "links"))
        self._wall = wall

    # --- tokens

    def create_token(self, name: str, role: Role) -> str:
        """A new token, shown this once. Raises Refused if there is one of that name, or ValueError for a bad name."""
        checked_name(name)
        taken = [grant.name for _, grant in self._grants(self._tokens)]
        if name in taken:
            raise Refused(f"there is a token {name} already: revoke it first")
        if len(taken) >= TOKENS_LIMIT:
            raise Refused(f"there are {len(taken)} tokens: revoke some first")
        return self._issue(self._tokens, name, role, None)

    def tokens(self) -> list[Grant]:
        return sorted((grant for _, grant in self._grants(self._tokens)), key=lambda grant: grant.name)

    def revoke_token(self, name: str) -> None:
        """Also ends the sessions that were opened with it. Raises NotFound."""
        found = [path for path, grant in self._grants(self._tokens) if grant.name == name]
        if not found:
            raise NotFound("token", name)
        found += [path for path, grant in self._grants(self._sessions) if grant.name == name]
        for path in found:
            path.unlink(missing_ok=True)

    def bearer(self, token: str) -> Identity | None:
        grant = self._find(self._tokens, token)
        return None if grant is None else Identity(grant.name, Role.named(grant.role))

    # --- links

    def issue_link(self, name: str = "owner", role: Role = Role.ADMIN) -> str:
        """The secret of a one-time link."""
        return self._issue(self._links, name, role, self._wall() + LINK_S)

    def use_link(self, secret: str) -> Identity | None:
        """Who the link is for; it is used up. Of two users of one link the first wins."""
        grant = self._find(self._links, secret)
        if grant is None:
            return None
        try:
            (self._links / _digest(secret)).unlink()
        except FileNotFoundError:
            return None
        return Identity(grant.name, Role.named(grant.role))

    # --- sessions

    def open_session(self, identity: Identity, lasts_s: float) -> Identity:
        """The same person with a cookie."""
        self._forget_ended()
        cookie = self._issue(self._sessions, identity.name, identity.role, self._wall() + lasts_s)
        return Identity(identity.name, identity.role, cookie)

    def session(self, cookie: str) -> Identity | None:
        grant = self._find(self._sessions, cookie)
        return None if grant is None else Identity(grant.name, Role.named(grant.role), cookie)

    def end_session(self, cookie: str) -> None:
        if _SECRET.fullmatch(cookie):
            (self._sessions / _digest(cookie)).unlink(missing_ok=True)

    def _forget_ended(self) -> None:
        """Remove what has ended, and the oldest sessions above the limit."""
        now = self._wall()
        for folder in (self._sessions, self._links):
            for path, grant in self._grants(folder):
                if grant.expires is not None and grant.expires <= now:
                    path.unlink(missing_ok=True)
        oldest = sorted(self._grants(self._sessions), key=lambda item: item[1].created)
        for path, _ in oldest[: max(0, len(oldest) - SESSIONS_LIMIT + 1)]:
            path.unlink(missing_ok=True)

    # --- files

    def _issue(self, folder: Path, name: str, role: Role, expires: float | None) -> str:
        secret = secrets.token_urlsafe(32)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        grant = Grant(name, role.word, self._wall(), expires)
        write_whole(folder / _digest(secret), json.dumps(asdict(grant)).encode())
        return secret

    def _find(self, folder: Path, secret: str) -> Grant | None:
        if not _SECRET.fullmatch(secret):
            return None
        grant = _read(folder / _digest(secret))
        if grant is None or (grant.expires is not None and grant.expires <= self._wall()):
            return None
        return grant

    def _grants(self, folder: Path) -> Iterator[tuple[Path, Grant]]:
        if not folder.is_dir():
            return
        for path in sorted(folder.iterdir()):
            if re.fullmatch(r"[0-9a-f]{64}", path.name) and (grant := _read(path)) is not None:
                yield path, grant


class Attempts:
    """Counts failed logins by address, and of all addresses together, over a sliding window."""

    def __init__(self, limit: int, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._window_s, self._clock = limit, window_s, clock
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds until this address may try again; 0: now."""
        return max(self._left(address, self._limit), self._left("", 10 * self._limit))

    def failed(self, address: str) -> None:
        for key in (address, ""):
            self._failed.setdefault(key, deque(maxlen=10 * self._limit)).append(self._clock())
            self._failed.move_to_end(key)
        while len(self._failed) > _ADDRESSES_LIMIT:
            self._failed.popitem(last=False)

    def _left(self, key: str, limit: int) -> float:
        times = self._failed.get(key)
        if times is None:
            return 0.0
        oldest = self._clock() - self._window_s
        while times and times[0] <= oldest:
            times.popleft()
        if not times:
            del self._failed[key]
            return 0.0
        return 0.0 if len(times) < limit else times[-limit] - oldest


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _read(path: Path) -> Grant | None:
    """None for a file that is gone or that somebody has damaged: nobody comes in by it."""
    try:
        fields = json.loads(path.read_bytes())
        grant = Grant(str(fields["name"]), str(fields["role"]), float(fields["created"]), fields["expires"])
        Role.named(grant.role)
    except (OSError, ValueError, KeyError, TypeError, Refused):
        return None
    return grant if grant.expires is None or isinstance(grant.expires, int | float) else None
