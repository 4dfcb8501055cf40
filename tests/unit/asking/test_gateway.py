"""HTTP on an edge: what it takes, what it gives, and that whatever is wrong is said by status and sentence."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from edgeai import gateway
from edgeai.asking import EdgeAnswer
from edgeai.errors import BusUnavailable, DeadlineMissed, EdgeaiError, ModelError, Overloaded, Refused
from edgeai.events.values import DTYPES, MAX_VALUE_BYTES, pack, unpack
from edgeai.gateway import MAX_BODY_BYTES, GatewaySettings, create_app, gateway_url, serving

NPY, MSGPACK = {"Content-Type": "application/x-npy"}, {"Content-Type": "application/msgpack"}
JSON, TEXT = {"Content-Type": "application/json"}, {"Content-Type": "text/plain"}


def npy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def head(descr: str, shape: tuple[int, ...], *, fortran_order: bool = False) -> bytes:
    """Of an .npy file, without its values."""
    file = io.BytesIO()
    told = {"descr": descr, "fortran_order": fortran_order, "shape": shape}
    np.lib.format.write_array_header_1_0(file, told)
    return file.getvalue()


def npz(value: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, x=value)
    return file.getvalue()


@dataclass
class Asked:
    """Stands for an edge whose service doubles what it is asked, or raises."""

    node: str = "edge1"
    error: EdgeaiError | None = None
    hold: asyncio.Event | None = None
    prediction: Any = None
    heard: list[tuple[str, Any, dict[str, Any]]] = field(default_factory=list)

    async def infer(self, service: str, x: Any, **options: Any) -> EdgeAnswer:
        self.heard.append((service, x, options))
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        doubled = x * 2 if self.prediction is None else self.prediction
        return EdgeAnswer(doubled, "cloud", True, 0.25, "digits-big", 2, "ab" * 32, 0.003, "", options["id"] or "made")


@pytest.fixture
def edge() -> Asked:
    return Asked()


@pytest_asyncio.fixture
async def client(edge: Asked) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(edge, lambda: {"digits"})  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as found:
        yield found


async def test_an_array_is_answered_with_who_how_sure_which_and_how_long(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/infer/digits", content=npy(np.arange(2.0)), headers=NPY)
    assert answer.json() == {
        "prediction": [0.0, 2.0],
        "by": "cloud",
        "hard": True,
        "score": 0.25,
        "model": "digits-big",
        "version": 2,
        "digest": "ab" * 32,
        "seconds": 0.003,
        "fell_back": "",
        "id": "made",
    }


async def test_msgpack_is_answered_with_msgpack_where_that_is_asked_for(client: httpx.AsyncClient) -> None:
    headers = {**MSGPACK, "Accept": "application/msgpack"}
    answer = await client.post("/v1/infer/digits", content=pack(np.float32([1.5])), headers=headers)
    assert unpack(answer.content)["prediction"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("document", "value"),
    [
        ({"input": [[1, 2]], "dtype": "float32"}, np.float32([[1, 2]])),
        ({"input": [1, 2]}, np.array([1, 2])),
        ({"input": []}, np.array([])),
        ({"input": [[[], []]]}, np.zeros((1, 2, 0))),
        ({"input": 3, "dtype": "uint8"}, np.array(3, "uint8")),
        ({"input": "how are you"}, "how are you"),
        ({"input": 3}, 3),
    ],
    ids=["typed list", "list", "empty list", "empty rows", "typed number", "text", "number"],
)
async def test_json_is_taken_as_it_is_meant(
    client: httpx.AsyncClient, edge: Asked, document: dict[str, Any], value: Any
) -> None:
    await client.post("/v1/infer/digits", json=document)
    found = edge.heard[0][1]
    assert type(found) is type(value)
    assert np.array_equal(found, value)
    assert getattr(found, "shape", None) == getattr(value, "shape", None)
    assert getattr(found, "dtype", None) == getattr(value, "dtype", None)


async def test_a_list_in_a_map_of_json_is_an_array(client: httpx.AsyncClient, edge: Asked) -> None:
    edge.prediction = 1
    document = {"input": {"image": [[1, 2]], "age": 7, "name": "a", "more": {"deep": [1]}}, "dtype": "float32"}
    await client.post("/v1/infer/digits", json=document)
    found = edge.heard[0][1]
    assert (found["image"].dtype, found["image"].tolist()) == (np.float32, [[1.0, 2.0]])
    assert (found["age"], found["name"], found["more"]) == (7, "a", {"deep": [1]})


@pytest.mark.parametrize(
    "value",
    [
        *(np.array([[0, 1, 1], [1, 0, 1]], name) for name in DTYPES),
        np.float32(4.0),
        np.zeros((0, 3)),
        np.arange(6).reshape(2, 3).T,
    ],
    ids=[*DTYPES, "no axes", "no values", "by column"],
)
async def test_what_numpy_saves_is_taken(client: httpx.AsyncClient, edge: Asked, value: Any) -> None:
    edge.prediction = 1
    await client.post("/v1/infer/digits", content=npy(value), headers=NPY)
    found = edge.heard[0][1]
    assert (found.dtype, found.shape, found.tolist()) == (value.dtype, value.shape, value.tolist())


async def test_a_large_body_is_decoded_beside_the_loop(
    client: httpx.AsyncClient, edge: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded_in: list[threading.Thread] = []
    decode = gateway._value

    def noted(kind: str, body: bytes) -> Any:
        decoded_in.append(threading.current_thread())
        return decode(kind, body)

    monkeypatch.setattr(gateway, "_value", noted)
    for size in (10, 100_000):
        await client.post("/v1/infer/digits", content=npy(np.zeros(size, "uint8")), headers=NPY)
    small, large = decoded_in
    assert (small is threading.main_thread(), large is threading.main_thread()) == (True, False)
    assert edge.heard[1][1].shape == (100_000,)


async def test_without_a_header_the_deadline_is_the_services_own(client: httpx.AsyncClient, edge: Asked) -> None:
    await client.post("/v1/infer/digits", content=npy(1.0), headers=NPY)
    assert edge.heard[0][2]["deadline_s"] is None


async def test_text_is_text(client: httpx.AsyncClient, edge: Asked) -> None:
    await client.post("/v1/infer/digits", content="grüße", headers={"Content-Type": "text/plain; charset=utf-8"})
    assert edge.heard[0][1] == "grüße"


async def test_deadline_id_model_and_trace_travel_in_headers(client: httpx.AsyncClient, edge: Asked) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = {**NPY, "Edgeai-Deadline": "0.25", "Edgeai-Id": "x7", "Edgeai-Model": "digits-big", "traceparent": trace}
    await client.post("/v1/infer/digits", content=npy(1.0), headers=headers)
    service, _, options = edge.heard[0]
    assert (service, options) == (
        "digits",
        {"deadline_s": 0.25, "id": "x7", "model": "digits-big", "traceparent": trace},
    )


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Refused("wrong shape"), 400, "refused"),
        (Overloaded("64 wait"), 503, "overloaded"),
        (DeadlineMissed("no answer"), 504, "late"),
        (BusUnavailable("mqtt://x"), 503, "unavailable"),
        (ModelError("not finite"), 502, "failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, EdgeaiError) else None,
)
async def test_errors_have_their_status_and_their_sentence(
    client: httpx.AsyncClient, edge: Asked, error: EdgeaiError, status: int, kind: str
) -> None:
    edge.error = error
    answer = await client.post("/v1/infer/digits", content=npy(1.0), headers=NPY)
    assert (answer.status_code, answer.json()) == (status, {"error": str(error), "kind": kind})


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (b"nonsense", NPY, 400, "the body is no application/x-npy"),
        (npz(np.zeros(1000)), NPY, 400, "the body is no application/x-npy"),
        (head("|u1", (10**14,)), NPY, 400, "does not have 0 bytes"),
        (head("|u1", (3,)) + b"abcd", NPY, 400, "an array of shape [3] does not have 4 bytes"),
        (head("|u1", (-2, -2)) + b"abcd", NPY, 400, "negative dimensions"),
        (head(">f4", (1,)) + bytes(4), NPY, 400, "values of type >f4; taken are bool, int8"),
        (head("<M8[s]", (1,)) + bytes(8), NPY, 400, "values of type datetime64[s]"),
        (head("<U100000000", (0,)), NPY, 400, "values of type <U100000000"),
        (b"\x93NUMPY\x03\x00", NPY, 400, "version (3, 0) of the format"),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16, NPY, 400, "its header cannot be read"),
        (b"\xff", TEXT, 400, "the body is no text/plain"),
        (b"\xc1", MSGPACK, 400, "the body is no application/msgpack"),
        (b'{"input": [300], "dtype": "uint8"}', JSON, 400, "out of bounds for uint8"),
        (b'{"input": [1], "dtype": "M8"}', JSON, 400, "dtype is one of bool, int8"),
        (b'{"input": [1], "dtype": [1]}', JSON, 400, "dtype is one of bool, int8"),
        (b'{"input": ["a"], "dtype": "U100000000"}', JSON, 400, "dtype is one of bool, int8"),
        (b'{"input": [1, 1180591620717411303424]}', JSON, 400, "no array of numbers"),
        (b'{"input": [[1], [2, 3]]}', JSON, 400, "no array: it has rows of 1 and of 2"),
        (b'{"input": [[1], 2]}', JSON, 400, "no array of numbers"),
        (b'{"input": Infinity}', JSON, 400, "Infinity is no number of JSON"),
        (b'{"input": [NaN]}', JSON, 400, "NaN is no number of JSON"),
        (b"[" * 50_000, JSON, 400, "the body is no application/json"),
        (b'{"image": 1}', {"Content-Type": "application/json"}, 400, 'JSON is {"input"'),
        (b'{"input": ["a"]}', {"Content-Type": "application/json"}, 400, "no array of numbers"),
        (b"x", {"Content-Type": "image/png"}, 415, "Content-Type is one of"),
        (b"x", {**NPY, "Edgeai-Deadline": "soon"}, 400, "Edgeai-Deadline is a number of seconds"),
        (b"x", {**NPY, "Origin": "http://evil.example"}, 403, "requests of web pages are refused"),
    ],
)
async def test_what_cannot_be_asked_is_refused_by_name(
    client: httpx.AsyncClient, edge: Asked, content: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    answer = await client.post("/v1/infer/digits", content=content, headers=headers)
    assert answer.status_code == status
    assert said in answer.json()["error"]
    assert edge.heard == []


async def test_a_pickle_is_never_opened(client: httpx.AsyncClient, edge: Asked) -> None:
    answer = await client.post("/v1/infer/digits", content=npy(np.array([object()])), headers=NPY)
    assert (answer.status_code, edge.heard) == (400, [])


@pytest.mark.parametrize(
    ("prediction", "accept", "said"),
    [
        (np.array([1.0, np.nan]), "application/json", "has values that are not finite"),
        ({"odds": [float("inf")]}, "application/json", "has values that are not finite"),
        (np.zeros(MAX_VALUE_BYTES - 64, "uint8"), "application/msgpack", "too large for msgpack"),
    ],
    ids=["nan", "inf in a map", "too large"],
)
async def test_an_answer_that_cannot_be_sent_is_a_failure_of_the_service(
    client: httpx.AsyncClient, edge: Asked, prediction: Any, accept: str, said: str
) -> None:
    edge.prediction = prediction
    answer = await client.post("/v1/infer/digits", content=npy(1.0), headers={**NPY, "Accept": accept})
    assert (answer.status_code, answer.json()["kind"]) == (502, "failed")
    assert said in answer.json()["error"]


async def test_msgpack_has_a_form_for_what_is_not_finite(client: httpx.AsyncClient, edge: Asked) -> None:
    edge.prediction = float("inf")
    answer = await client.post("/v1/infer/digits", content=npy(1.0), headers={**NPY, "Accept": "application/msgpack"})
    assert unpack(answer.content)["prediction"] == float("inf")


async def test_texts_of_a_list_take_no_more_memory_than_they_have(client: httpx.AsyncClient, edge: Asked) -> None:
    # As an array each of them would have the room of the longest: 400 GB.
    texts = ",".join(['"' + "a" * 1_000_000 + '"', *(['""'] * 100_000)])
    answer = await client.post("/v1/infer/digits", content=f'{{"input": [{texts}]}}', headers=JSON)
    assert (answer.status_code, answer.json()["error"]) == (400, "input is a list that is no array of numbers")


async def test_a_service_that_is_not_here_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/infer/faces", content=npy(1.0), headers=NPY)
    assert (answer.status_code, answer.json()["error"]) == (
        404,
        "service faces has no worker on edge1; there is digits",
    )


async def test_what_is_too_large_is_refused_by_its_length_alone(client: httpx.AsyncClient) -> None:
    headers = {**NPY, "Content-Length": str(100 * 1024 * 1024)}
    answer = await client.post("/v1/infer/digits", content=b"", headers=headers)
    assert answer.status_code == 413
    assert f"at most {MAX_BODY_BYTES}" in answer.json()["error"]


async def test_more_requests_than_may_wait_are_refused_at_once(
    client: httpx.AsyncClient, edge: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "MAX_OPEN", 1)
    edge.hold = asyncio.Event()
    first = asyncio.create_task(client.post("/v1/infer/digits", content=npy(1.0), headers=NPY))
    async with asyncio.timeout(5):
        while not edge.heard:
            await asyncio.sleep(0)
    second = await client.post("/v1/infer/digits", content=npy(1.0), headers=NPY)
    edge.hold.set()
    assert (second.status_code, (await first).status_code) == (503, 200)


@dataclass
class Slow:
    """A body that does not come to its end before it may."""

    first: bytes = b"how are you"
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    rest: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.first
        self.begun.set()
        await self.rest.wait()


async def test_an_input_that_does_not_arrive_has_its_deadline(client: httpx.AsyncClient, edge: Asked) -> None:
    headers = {**TEXT, "Edgeai-Deadline": "0.05"}
    async with asyncio.timeout(5):
        answer = await client.post("/v1/infer/digits", content=aiter(Slow()), headers=headers)
    assert (answer.status_code, answer.json()) == (
        408,
        {"error": "the input has not arrived within 0.05 s: send it at once", "kind": "late"},
    )
    assert (answer.headers["connection"], edge.heard) == ("close", [])


async def test_an_input_that_is_on_its_way_takes_no_place_of_one_that_waits(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "MAX_OPEN", 1)
    slow = Slow()
    first = asyncio.create_task(client.post("/v1/infer/digits", content=aiter(slow), headers=TEXT))
    await slow.begun.wait()
    assert (await client.post("/v1/infer/digits", content="x", headers=TEXT)).status_code == 200
    slow.rest.set()
    assert (await first).json()["prediction"] == "how are you" * 2


@pytest.mark.parametrize(
    ("limit", "allowed", "said"),
    [("MAX_BODIES", 1, "1 requests are on their way"), ("MAX_BODIES_BYTES", 15, "15 bytes are on their way")],
)
async def test_more_inputs_on_their_way_than_may_be_are_refused_until_one_is_done(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, limit: str, allowed: int, said: str
) -> None:
    monkeypatch.setattr(gateway, limit, allowed)
    slow = Slow()
    first = asyncio.create_task(client.post("/v1/infer/digits", content=aiter(slow), headers=TEXT))
    await slow.begun.wait()
    second = await client.post("/v1/infer/digits", content="a word", headers=TEXT)
    slow.rest.set()
    assert (second.status_code, second.json()["kind"], (await first).status_code) == (503, "overloaded", 200)
    assert said in second.json()["error"]
    assert (await client.post("/v1/infer/digits", content="a word", headers=TEXT)).status_code == 200


async def test_it_serves_on_loopback_and_finds_its_port_again(edge: Asked, tmp_path: Path) -> None:
    urls = []
    for _ in range(2):
        async with serving(edge, lambda: {"digits"}, GatewaySettings(tmp_path)) as url, httpx.AsyncClient() as client:  # type: ignore[arg-type]
            answer = await client.get(f"{url}/v1/services")
            urls.append(url)
    assert answer.json() == {"node": "edge1", "services": ["digits"]}
    assert urls == [gateway_url(tmp_path)] * 2


async def test_other_host_names_are_refused(edge: Asked) -> None:
    app = create_app(edge, lambda: {"digits"})  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://evil.example") as client:
        assert (await client.get("/v1/services")).status_code == 400
