"""`edgeai infer`: ask a joint inference service on an edge of this machine, and see who answers, how sure, and how fast."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgeai.asking import Edge, EdgeAnswer, connect_edge
from edgeai.cli.output import aligned
from edgeai.errors import BusUnavailable, DamagedFile, EdgeaiError, NotFound, Refused
from edgeai.events.values import DTYPES
from edgeai.logs import configure
from edgeai.settings import data_folder, read_context

_HEADER = ("INPUT", "ANSWER", "BY", "HARD", "SCORE", "MODEL", "VERSION", "TIME", "NOTE")
_LONGEST = 40
AT_ONCE = 16


def inputs_from(file: Path | None, text: str | None, document: str | None, *, rows: bool, dtype: str = "") -> list[Any]:
    """What is asked, one entry a request; `dtype` is what an array is made. Raises NotFound, Refused."""
    if text is not None:
        return [text]
    value = _of_json(document) if document is not None else _of_file(file or Path())
    if dtype:
        value = _of_type(value, dtype)
    if not rows:
        return [value]
    if not isinstance(value, np.ndarray) or value.ndim < 1:
        raise Refused("--rows needs an array whose first axis are the inputs")
    return list(value)


def _of_type(value: Any, dtype: str) -> Any:
    if dtype not in DTYPES:
        raise Refused(f"--dtype {dtype} is none of {', '.join(DTYPES)}")
    if not isinstance(value, np.ndarray):
        raise Refused("--dtype is for an array")
    made = value.astype(dtype)
    if value.dtype.kind in "biu" and not np.array_equal(made, value):
        raise Refused(f"--dtype {dtype} cannot hold values from {value.min()} to {value.max()}")
    return made


def _of_json(document: str) -> Any:
    try:
        value = json.loads(document)
    except ValueError as error:
        raise Refused(f"--json is no JSON: {error}") from error
    if isinstance(value, dict):
        return {name: _array(each) if isinstance(each, list) else each for name, each in value.items()}
    return _array(value) if isinstance(value, list) else value


def _array(values: list[Any]) -> Any:
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError) as error:  # rows of several lengths
        raise Refused(f"--json is a list that is no array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise Refused("--json is a list that is no array of numbers")
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _of_file(file: Path) -> Any:
    """An .npy file, the only array or the one called x of an .npz file, or text."""
    try:
        if file.suffix == ".npy":
            return np.load(file, allow_pickle=False)
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                names = list(arrays)
                chosen = names[0] if len(names) == 1 else next((name for name in ("x", "x_test") if name in names), "")
                if not chosen:
                    raise Refused(f"{file} has the arrays {', '.join(names)}: name the one to ask about x")
                return arrays[chosen]
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound("file", str(file)) from error
    except (OSError, ValueError, EOFError) as error:
        raise Refused(f"{file} cannot be read: {error}") from error


def login_of(edge: str | None) -> tuple[str, Path]:
    """Node and credentials file of the edge of this machine. Raises NotFound, Refused."""
    found = dict(_logins())
    if edge is not None:
        if edge not in found:
            there = f"there is {', '.join(sorted(found))}" if found else "start `edgeai up` or `edgeai edge` first"
            raise NotFound("edge of this machine", edge, f"{there}; --credentials FILE names the file of any other")
        return edge, found[edge]
    if not found:
        raise NotFound(
            "edge", "of this machine", "start `edgeai up` or `edgeai edge`, or give --edge and --credentials"
        )
    if len(found) > 1:
        raise Refused(f"there are several edges on this machine: give --edge with one of {', '.join(sorted(found))}")
    return next(iter(found.items()))


def _logins() -> Iterator[tuple[str, Path]]:
    """Of the playground that the context names, and of daemons with the usual folders."""
    roots = [data_folder()]
    with suppress(NotFound, DamagedFile):
        roots.append(Path(read_context().state_dir))
    for root in roots:
        for path in root.glob("*/credentials/*.app.json"):
            yield path.name.partition(".")[0], path


async def ask(
    node: str,
    credentials: Path,
    service: str,
    inputs: list[Any],
    *,
    deadline_s: float | None,
    model: str,
    as_json: bool,
) -> None:
    """Ask, a few at a time, and print the answers in their order. Raises the first error, when all have ended."""
    configure(os.environ.get("EDGEAI_LOG") or "error")
    async with _connected(node, credentials) as edge:
        found = await _all(edge, service, inputs, deadline_s, model)
    found = [hinted(each, value) for each, value in zip(found, inputs, strict=True)]
    errors = [each for each in found if isinstance(each, EdgeaiError)]
    if as_json:
        for number, each in enumerate(found):
            print(json.dumps({"input": number, **_document(each)}, default=_plain))
    elif len(found) > len(errors):
        print("\n".join(aligned([_HEADER, *(_row(number, each) for number, each in enumerate(found))])))
    if errors:
        raise errors[0]


@asynccontextmanager
async def _connected(node: str, credentials: Path) -> AsyncIterator[Edge]:
    """Raises EdgeAway: its broker does not answer."""
    connecting = connect_edge(node, credentials_file=credentials)
    try:
        edge = await connecting.__aenter__()
    except BusUnavailable as error:
        raise EdgeAway(node, error.url) from error
    try:
        yield edge
    finally:
        await connecting.__aexit__(None, None, None)


class EdgeAway(BusUnavailable):
    def __init__(self, node: str, url: str) -> None:
        what = f"{node} is stopped, or elsewhere: start `edgeai up` or `edgeai edge --node {node}` on this machine"
        super().__init__(url, what)


def hinted(found: EdgeAnswer | EdgeaiError, value: Any) -> EdgeAnswer | EdgeaiError:
    """What this command can do about it: an array of inputs looks like one input of another shape."""
    several = isinstance(value, np.ndarray) and value.ndim > 0
    if isinstance(found, Refused) and several and "shape" in str(found):
        return Refused(f"{found}; if these are several inputs, --rows asks about each row of the array")
    return found


async def _all(
    edge: Edge, service: str, inputs: list[Any], deadline_s: float | None, model: str
) -> list[EdgeAnswer | EdgeaiError]:
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(value: Any) -> EdgeAnswer | EdgeaiError:
        async with turn:
            try:
                return await edge.infer(service, value, deadline_s=deadline_s, model=model)
            except EdgeaiError as error:
                return error

    return await asyncio.gather(*(one(value) for value in inputs))


def _row(number: int, found: EdgeAnswer | EdgeaiError) -> tuple[str, ...]:
    if isinstance(found, EdgeaiError):
        return str(number), "-", "-", "-", "-", "-", "-", "-", str(found)
    version = str(found.version) if found.version else "-"
    took = f"{found.seconds * 1000:.1f} ms"
    hard = "yes" if found.hard else "no"
    return (
        *(str(number), shown(found.prediction), found.by, hard, f"{found.score:.3f}"),
        *(found.model or "-", version, took, found.fell_back),
    )


def shown(prediction: Any) -> str:
    """A list of scores as the index of its largest one, everything else as it is."""
    if isinstance(prediction, np.ndarray) and prediction.ndim == 1 and prediction.size > 1:
        best = int(prediction.argmax())
        return f"{best} ({float(prediction[best]):.3f})"
    text = str(prediction.tolist() if isinstance(prediction, np.ndarray | np.generic) else prediction)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def _document(found: EdgeAnswer | EdgeaiError) -> dict[str, Any]:
    if isinstance(found, EdgeaiError):
        return {"error": str(found)}
    return asdict(found)


def _plain(value: Any) -> Any:
    """What JSON has no form for, anywhere in an answer."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value.hex() if isinstance(value, bytes) else str(value)
