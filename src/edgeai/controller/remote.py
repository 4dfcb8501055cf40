"""Datasets in a store: fetched into a file of the node, again when the store has another version. The only door to fsspec.

The version is the store's etag, or time and size. A store that does not answer, or refuses, changes nothing that is here
already: the copy goes on being used, and `unreached` says why it may be old. What nobody has fetched yet is a DatasetProblem.

A dataset may name a file of the node's secrets folder: JSON with what the store's library wants to know, such as `key` and
`secret`, or `endpoint_url`. Without one the library finds credentials as it always does, in the environment and in its own
files. Nothing of either is in a url, in a log or in what a node tells. When datasets are looked at is `watching`'s. Blocks.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from edgeai.controller.formats import DatasetProblem
from edgeai.errors import StoreError
from edgeai.events.catalogue import DatasetWanted
from edgeai.store.files import PIECE_BYTES, WholeFile, free_space_bytes, write_whole

LOOK_S = 10.0
"""A store is not asked more often for the version of a file."""
CONNECT_S, SILENCE_S, ATTEMPTS = 5, 15, 2
"""So long a store may take to answer a call, and so long between two pieces of a file; so often it is tried."""
_KEEP_FREE_BYTES = 64 * 1024 * 1024
_MAX_SECRET_BYTES = 64 * 1024
_SHORTEST_SECRET = 4
_CONTENT = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest")
_TIMES = ("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "created")
_EXTRAS = {"s3": "s3", "http": "remote", "https": "remote"}


@dataclass(frozen=True, slots=True)
class Stores:
    """Where a node keeps what it has fetched, and the files that datasets may name as their secret."""

    folder: Path
    secrets: Path | None = None


@dataclass(slots=True)
class _Look:
    """The last time a store was asked for a file; `problem` is why it did not tell."""

    at: float = float("-inf")
    problem: str = ""
    turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() - self.at < LOOK_S

    def note(self, problem: str = "") -> None:
        self.at, self.problem = time.monotonic(), problem


class _Unanswered(Exception):
    """The store did not tell; says why. What was fetched before is used."""


_files: dict[Path, _Look] = {}
_silent: dict[str, _Look] = {}
"""Stores that could not be reached, by scheme, host and secret: with many datasets in one, only the first waits for it."""


def fetch(wanted: DatasetWanted, stores: Stores) -> Path:
    """The newest version of a dataset as a file; the one from before if the store does not answer. Raises DatasetProblem."""
    here = place(wanted, stores)
    look = _files.setdefault(here, _Look())
    if here.exists() and look.is_fresh:
        return here
    with look.turn:
        if here.exists() and look.is_fresh:
            return here  # somebody else has asked meanwhile
        try:
            _bring(wanted, stores, here)
        except _Unanswered as why:
            if not here.exists():
                raise DatasetProblem(f"{wanted.url} was not fetched: {why}") from why
            look.note(f"{wanted.url} could not be looked at: {why}; the copy of {_when(here)} is used")
        else:
            look.note()
    return here


def unreached(wanted: DatasetWanted, stores: Stores) -> str:
    """Why the file that `fetch` has given may be older than the store's; empty if it is not."""
    look = _files.get(place(wanted, stores))
    return look.problem if look is not None else ""


def place(wanted: DatasetWanted, stores: Stores) -> Path:
    """Where a dataset is, once it has been fetched. What was fetched with one secret is not shown to who names another."""
    name = f"{wanted.url}\0{wanted.secret}" if wanted.secret else wanted.url
    folder = hashlib.sha256(name.encode()).hexdigest()[:32]
    return stores.folder / folder / PurePosixPath(wanted.url.partition("://")[2]).name


# --- asking a store


def _bring(wanted: DatasetWanted, stores: Stores, here: Path) -> None:
    """Raises DatasetProblem: it is not there, or no file. Raises _Unanswered."""
    given = _given(wanted, stores)
    silent = _silent.setdefault(_store_of(wanted), _Look())
    if silent.is_fresh and silent.problem:
        raise _Unanswered(silent.problem)
    with _explained(wanted, given, silent):
        import fsspec

        store, path = fsspec.core.url_to_fs(wanted.url, **_options(wanted.url, given))
        store.retries = 1  # s3fs' own, each of which has all of ATTEMPTS
        try:
            _take(store, path, here)
        except BaseException:
            store.clear_instance_cache()  # it would keep credentials that it once found, or did not find
            raise
    silent.note()


def _take(store: Any, path: str, here: Path) -> None:
    store.invalidate_cache()
    found = store.info(path)
    version = _version(found)
    if not here.exists() or _fetched_version(here) != version:
        _copy(store, path, found, here)
        write_whole(_beside(here), json.dumps(version).encode())


@contextmanager
def _explained(wanted: DatasetWanted, given: Mapping[str, Any], silent: _Look) -> Iterator[None]:
    """What a store's library raises, in a sentence."""
    url = wanted.url
    try:
        yield
    except _Unanswered:
        raise
    except DatasetProblem as error:
        raise DatasetProblem(f"{url} was not fetched: {error}") from error
    except ImportError as error:
        extra = _EXTRAS.get(url.partition("://")[0], "")
        hint = f"install it with: pip install 'edgeai[{extra}]'" if extra else _one_line(error)
        raise _Unanswered(f"its store needs a library that is not on this node; {hint}") from error
    except StoreError as error:
        raise _Unanswered(str(error)) from error
    except PermissionError as error:
        who = f"the secret {wanted.secret}" if wanted.secret else "this node"
        raise _Unanswered(f"the store refuses {who} ({_one_line(error, given)}); give it the right to read") from error
    except FileNotFoundError as error:
        status = getattr(error.__cause__, "status", None)  # over HTTP everything that goes wrong is called so
        if error.__cause__ is None or status in {404, 410} or not url.startswith("http"):
            raise DatasetProblem(f"{url} does not exist; put it there or change the url") from error
        problem = _one_line(error.__cause__, given) or type(error.__cause__).__name__
        if status is None:
            silent.note(problem)
        raise _Unanswered(problem) from error
    except Exception as error:
        problem = f"{type(error).__name__}: {_one_line(error, given)}"
        if _is_silence(error):
            silent.note(problem)
        raise _Unanswered(problem) from error


def _is_silence(error: BaseException) -> bool:
    """Nobody answers there; so it will be for the store's other files."""
    names = {each.__name__ for each in type(error).__mro__}
    return bool(names & {"ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError"})


def _store_of(wanted: DatasetWanted) -> str:
    scheme, _, rest = wanted.url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]} {wanted.secret}"


def _options(url: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """For the store's library. A store that is silent may not hold a node's threads for minutes, as it would by default."""
    match url.partition("://")[0]:
        case "s3":
            config = {
                "connect_timeout": CONNECT_S,
                "read_timeout": SILENCE_S,
                "retries": {"total_max_attempts": ATTEMPTS},
            }
            return {**given, "config_kwargs": config | _part(given, "config_kwargs")}
        case "http" | "https":
            import aiohttp

            patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
            return {**given, "client_kwargs": {"timeout": patience} | _part(given, "client_kwargs")}
    return dict(given)


def _part(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = given.get(name)
    return dict(found) if isinstance(found, dict) else {}


def _version(found: Mapping[str, Any]) -> list[str]:
    """Raises DatasetProblem if nothing would tell a change."""
    content = [f"{name}={found[name]}" for name in _CONTENT if found.get(name)]
    said = content or [f"{name}={found[name]}" for name in _TIMES if found.get(name) is not None]
    if found.get("size") is not None:
        said.append(f"size={found['size']}")
    if not said:
        raise DatasetProblem("its server tells neither an ETag nor a time nor a size of it; let it tell one")
    return said


def _copy(store: Any, path: str, found: Mapping[str, Any], here: Path) -> None:
    if found.get("type") == "directory":
        raise DatasetProblem("it is a folder; name a file in it")
    size, free = found.get("size") or 0, free_space_bytes(here)
    if size + _KEEP_FREE_BYTES > free:
        raise _Unanswered(f"it has {size} bytes, and {free} are free on this node")
    here.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with WholeFile(here) as target:
        with store.open(path, "rb") as source:
            while piece := source.read(PIECE_BYTES):
                target.write(piece)
        if size and target.size_bytes != size:
            raise _Unanswered(f"it changed meanwhile: {target.size_bytes} bytes instead of {size}")
        store.invalidate_cache()
        if _version(store.info(path)) != _version(found):
            raise _Unanswered("it changed meanwhile")
        with suppress(FileNotFoundError):
            _beside(here).unlink()  # a file whose version is not known is fetched again
        target.commit()


# --- secrets


def _given(wanted: DatasetWanted, stores: Stores) -> dict[str, Any]:
    """What the secret of a dataset says. Its content is in no sentence. Raises _Unanswered."""
    if not wanted.secret:
        return {}
    if stores.secrets is None:
        raise _Unanswered(f"it names the secret {wanted.secret}, but this node has no secrets_dir; set it")
    root = stores.secrets.resolve()
    file = (root / PurePosixPath(wanted.secret)).resolve()
    if not file.is_relative_to(root) or not file.is_file():
        raise _Unanswered(f"secret {wanted.secret} is not in the secrets folder of this node; put it there")
    try:
        with file.open("rb") as source:
            said = json.loads(source.read(_MAX_SECRET_BYTES))
    except OSError as error:
        raise _Unanswered(f"secret {wanted.secret} cannot be read: {error.strerror or error}") from error
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise _Unanswered(f'secret {wanted.secret} has to be JSON, such as {{"key": "...", "secret": "..."}}')
    return said


def _words_of(given: Any) -> Iterator[str]:
    match given:
        case str():
            yield given
        case dict():
            for value in given.values():
                yield from _words_of(value)
        case list():
            for value in given:
                yield from _words_of(value)


# --- what lies here


def _beside(here: Path) -> Path:
    return here.with_name(f".{here.name}.version")


def _fetched_version(here: Path) -> Any:
    try:
        return json.loads(_beside(here).read_bytes())
    except (OSError, ValueError):
        return None


def _when(here: Path) -> str:
    return datetime.fromtimestamp(here.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _one_line(error: BaseException, given: Mapping[str, Any] | None = None) -> str:
    """Without anything of a secret, should a store repeat it; its address may be said."""
    said = " ".join(str(error).split())
    hidden = {name: value for name, value in (given or {}).items() if name != "endpoint_url"}
    for word in _words_of(hidden):
        if len(word) >= _SHORTEST_SECRET:
            said = said.replace(word, "***")
    return said[:300]
