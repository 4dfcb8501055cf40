"""HTTP on an edge: what it takes, what it gives, and that whatever is wrong is said by status and sentence."""

from __future__ import annotations

import asyncio
import io
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
from edgeai.events.values import pack, unpack
from edgeai.gateway import MAX_BODY_BYTES, GatewaySettings, create_app, gateway_url, serving

NPY, MSGPACK = {"Content-Type": "application/x-npy"}, {"Content-Type": "application/msgpack"}


def npy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


@dataclass
class Asked:
    """Stands for an edge whose service doubles what it is asked, or raises."""

    node: str = "edge1"
    error: EdgeaiError | None = None
    hold: asyncio.Event | None = None
    heard: list[tuple[str, Any, dict[str, Any]]] = field(default_factory=list)

    async def infer(self, service: str, x: Any, **options: Any) -> EdgeAnswer:
        self.heard.append((service, x, options))
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        doubled = x * 2
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
        ({"input": "how are you"}, "how are you"),
        ({"input": 3}, 3),
    ],
    ids=["typed list", "list", "text", "number"],
)
async def test_json_is_taken_as_it_is_meant(
    client: httpx.AsyncClient, edge: Asked, document: dict[str, Any], value: Any
) -> None:
    await client.post("/v1/infer/digits", json=document)
    found = edge.heard[0][1]
    assert type(found) is type(value)
    assert np.array_equal(found, value)
    assert getattr(found, "dtype", None) == getattr(value, "dtype", None)


async def test_text_is_text(client: httpx.AsyncClient, edge: Asked) -> None:
    await client.post("/v1/infer/digits", content="grüße", headers={"Content-Type": "text/plain; charset=utf-8"})
    assert edge.heard[0][1] == "grüße"


async def test_deadline_id_and_model_travel_in_headers(client: httpx.AsyncClient, edge: Asked) -> None:
    headers = {**NPY, "Edgeai-Deadline": "0.25", "Edgeai-Id": "x7", "Edgeai-Model": "digits-big"}
    await client.post("/v1/infer/digits", content=npy(1.0), headers=headers)
    service, _, options = edge.heard[0]
    assert (service, options) == ("digits", {"deadline_s": 0.25, "id": "x7", "model": "digits-big"})


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
        (b"\xc1", MSGPACK, 400, "the body is no application/msgpack"),
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
