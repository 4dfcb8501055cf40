"""Datasets in an S3 store and on a web server: real ones, started by the test, that fall silent, refuse, and change.

The store is moto's server, which checks who asks. A job of a real edge trains on what lies there.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from learning_world import EDGE, KNOWN, LearningWorld, digits
from living_world import API, HERE, PATIENCE_S, World, processes_in

from edgeai.cli.playground import Playground
from edgeai.controller import remote
from edgeai.controller.datasets import DatasetProblem, note_of, place_of, verify
from edgeai.controller.remote import Stores
from edgeai.events.catalogue import DatasetWanted
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.dataset import Dataset
from edgeai.resources.kinds import from_document

for name in ("s3fs", "moto", "flask"):
    pytest.importorskip(name, reason=f"{name} is not installed (pip install 'edgeai[s3]' 'moto[server]')")

pytestmark = pytest.mark.timeout(150)
SECRET, WRONG = "teams/store.json", "teams/wrong.json"
ADMIN = {"aws_access_key_id": "admin", "aws_secret_access_key": "unchecked", "region_name": "us-east-1"}
RIGHTS = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
MAY_BE_SKIPPED = 1000
"""Calls of the test itself that the store does not check: it makes the user that is checked from then on."""


@dataclass
class Store:
    """A store with one bucket, which knows one user. Everything is forgotten when it is started again."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    secret_word: str = ""
    user: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.user = {}
        argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": str(MAY_BE_SKIPPED)}
        with (self.folder / "store.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, env=environment, cwd=self.folder)
        until = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < until, (self.folder / "store.log").read_text()
            time.sleep(0.1)
        self.client("s3").create_bucket(Bucket="bucket")
        iam = self.client("iam")
        iam.create_user(UserName="edge")
        iam.put_user_policy(UserName="edge", PolicyName="all", PolicyDocument=json.dumps(RIGHTS))
        key = iam.create_access_key(UserName="edge")["AccessKey"]
        self.secret_word = key["SecretAccessKey"]
        self.give(SECRET, key["AccessKeyId"], self.secret_word)
        self.give(WRONG, key["AccessKeyId"], "quite-another-word")
        self.user = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": self.secret_word}
        count = urllib.request.Request(f"{self.url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urllib.request.urlopen(count, timeout=10).close()  # from now on it looks at who asks

    def _answers(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self.url}/moto-api/", timeout=5).status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def client(self, service: str) -> Any:
        import boto3

        return boto3.client(service, endpoint_url=self.url, **(ADMIN | self.user))

    def give(self, name: str, key: str, secret: str) -> None:
        """A file of the node's secrets folder."""
        path = self.folder / "secrets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        said = {"key": key, "secret": secret, "endpoint_url": self.url, "client_kwargs": {"region_name": "us-east-1"}}
        path.write_text(json.dumps(said))

    def put(self, name: str, content: bytes) -> str:
        """Returns the digest."""
        self.client("s3").put_object(Bucket="bucket", Key=name, Body=content)
        return hashlib.sha256(content).hexdigest()

    def remove(self, name: str) -> None:
        self.client("s3").delete_object(Bucket="bucket", Key=name)

    @property
    def stores(self) -> Stores:
        return Stores(self.folder / "fetched", self.folder / "secrets")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    store = Store(port, tmp_path_factory.mktemp("store"))
    store.start()
    yield store
    store.stop()


@pytest.fixture
def store(started: Store) -> Store:
    """A store that is up, whatever the test before did to it."""
    if started.process is None:
        started.start()
    return started


@pytest.fixture
def asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LOOK_S", 0.0)


def in_store(name: str, secret: str = SECRET) -> DatasetWanted:
    return DatasetWanted("d", f"s3://bucket/{name}", "csv", secret=secret)


def test_a_dataset_is_fetched_and_known_by_its_digest(store: Store):
    digest = store.put("folder/d.csv", b"a,y\n1,2\n")
    found = verify(in_store("folder/d.csv"), [], store.stores)
    assert (found.ready, found.samples, found.digest) == (True, 1, digest), found.reason


def test_a_version_that_is_here_is_not_fetched_again(store: Store, asked_each_time: None):
    store.put("same.csv", b"a,y\n1,2\n")
    before = place_of(in_store("same.csv"), [], store.stores).stat()
    store.put("same.csv", b"a,y\n1,2\n")  # at another time
    assert place_of(in_store("same.csv"), [], store.stores).stat() == before


def test_a_change_of_the_same_length_is_noticed(store: Store, asked_each_time: None):
    store.put("changes.csv", b"a,y\n1,2\n")
    verify(in_store("changes.csv"), [], store.stores)
    digest = store.put("changes.csv", b"a,y\n1,3\n")
    assert verify(in_store("changes.csv"), [], store.stores).digest == digest


def test_a_file_of_many_pieces_comes_whole(store: Store):
    content = b"a,y\n" + b"".join(b"%d,%d\n" % (number, number % 7) for number in range(1_500_000))
    digest = store.put("large.csv", content)
    path = place_of(in_store("large.csv"), [], store.stores)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


def test_what_is_removed_from_the_store_is_named(store: Store, asked_each_time: None):
    store.put("goes.csv", b"a,y\n1,2\n")
    verify(in_store("goes.csv"), [], store.stores)
    store.remove("goes.csv")
    assert verify(in_store("goes.csv"), [], store.stores).reason == (
        "s3://bucket/goes.csv does not exist; put it there or change the url"
    )


def test_a_wrong_word_is_refused_and_not_repeated(store: Store):
    store.put("locked.csv", b"a,y\n1,2\n")
    reason = verify(in_store("locked.csv", WRONG), [], store.stores).reason
    assert reason.startswith(
        f"s3://bucket/locked.csv was not fetched: the store refuses the secret {WRONG} (Forbidden); give it the right"
    )


def test_without_credentials_it_is_said(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    store.put("open.csv", b"a,y\n1,2\n")
    assert "Unable to locate credentials" in verify(in_store("open.csv", ""), [], store.stores).reason


def test_a_file_of_credentials_may_be_named_by_the_environment(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    said = json.loads((store.folder / "secrets" / SECRET).read_text())
    (tmp_path / "aws").write_text(
        f"[default]\naws_access_key_id = {said['key']}\naws_secret_access_key = {said['secret']}\n"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws"))
    store.put("by-file.csv", b"a,y\n1,2\n")
    found = verify(in_store("by-file.csv", ""), [], replace(store.stores, folder=tmp_path / "fetched"))
    assert found.samples == 1, found.reason


def test_a_store_that_is_gone_leaves_what_is_here_and_says_so_until_it_is_back(store: Store, asked_each_time: None):
    wanted, content = in_store("stays.csv"), b"a,y\n1,2\n"
    store.put("stays.csv", content)
    verify(wanted, [], store.stores)
    store.stop()
    assert verify(wanted, [], store.stores).samples == 1
    note = note_of(wanted, store.stores)
    assert note.startswith("s3://bucket/stays.csv could not be looked at: EndpointConnectionError: ")
    assert "; the copy of " in note
    with pytest.raises(DatasetProblem, match=r"never\.csv was not fetched: EndpointConnectionError"):
        place_of(in_store("never.csv"), [], store.stores)
    store.start()
    store.put("stays.csv", content + b"3,4\n")
    assert verify(wanted, [], store.stores).samples == 2
    assert note_of(wanted, store.stores) == ""


def test_a_store_that_takes_calls_and_says_nothing_is_given_up(
    store: Store, asked_each_time: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remote, "SILENCE_S", 0.5)
    store.put("quiet.csv", b"a,y\n1,2\n")
    verify(in_store("quiet.csv"), [], store.stores)
    assert store.process is not None
    store.process.send_signal(signal.SIGSTOP)
    try:
        assert verify(in_store("quiet.csv"), [], store.stores).samples == 1
        assert "could not be looked at" in note_of(in_store("quiet.csv"), store.stores)
    finally:
        store.process.send_signal(signal.SIGCONT)


# --- a web server


class Web:
    """One file over HTTP. `status` may say that it is not to be had."""

    def __init__(self) -> None:
        self.content, self.status, self.etag = b"a,y\n1,2\n", 200, True
        web = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(web.status)
                self.send_header("Content-Length", str(len(web.content)))
                if web.etag:
                    self.send_header("ETag", f'"{hashlib.sha256(web.content).hexdigest()}"')
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                self.wfile.write(web.content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.wanted = DatasetWanted("d", f"http://127.0.0.1:{self.server.server_port}/d.csv", "csv")

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    found = Web()
    yield found
    found.stop()


def test_a_dataset_comes_from_a_web_server_and_a_change_is_noticed(web: Web, tmp_path: Path, asked_each_time: None):
    stores = Stores(tmp_path)
    assert verify(web.wanted, [], stores).samples == 1
    web.content = b"a,y\n1,2\n3,4\n"
    assert verify(web.wanted, [], stores).samples == 2


def test_what_a_web_server_has_not_is_named(web: Web, tmp_path: Path):
    web.status = 404
    assert verify(web.wanted, [], Stores(tmp_path)).reason.endswith(
        "/d.csv does not exist; put it there or change the url"
    )


@pytest.mark.parametrize("trouble", ["503", "gone"])
def test_a_web_server_in_trouble_leaves_what_is_here(web: Web, tmp_path: Path, asked_each_time: None, trouble: str):
    stores = Stores(tmp_path)
    verify(web.wanted, [], stores)
    web.status = 503
    if trouble == "gone":
        web.server.server_close()
    assert verify(web.wanted, [], stores).samples == 1
    assert "could not be looked at: " in note_of(web.wanted, stores)


# --- a job of a real edge


@pytest_asyncio.fixture
async def learning(
    started: Store, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LearningWorld]:
    """One edge, whose secrets folder is the test's."""
    folder = tmp_path_factory.mktemp("world")
    monkeypatch.setenv("EDGEAI_EDGE_SECRETS_DIR", str(started.folder / "secrets"))
    playground = Playground(folder, edges=1)
    async with playground.running() as cloud:
        yield LearningWorld(World(playground, cloud, folder))
    assert [process.cmdline() for process in processes_in(folder)] == [], "processes were left behind"


def rows(count: int) -> bytes:
    x, y = digits()
    buffer = io.BytesIO()
    np.savez(buffer, x=x[:count], y=y[:count])
    return buffer.getvalue()


async def test_a_job_trains_on_what_a_store_has_and_goes_on_when_the_store_is_gone(
    store: Store, learning: LearningWorld
):
    name = "afar"
    digest = await asyncio.to_thread(store.put, "labelled.npz", rows(KNOWN))
    manifests = learning.manifests(name)
    spec = {"nodeName": EDGE, "url": "s3://bucket/labelled.npz", "format": "npz", "secret": SECRET}
    document = {"apiVersion": API, "kind": "Dataset", "metadata": {"name": f"{name}-labelled"}, "spec": spec}
    manifests[0] = from_document(document)
    learning.write_files(name)
    await learning.world.cloud.apply(manifests, base=HERE)
    await learning.counted(name, 0)
    dataset = await _dataset(learning, name, lambda found: found.status.digest == digest)
    assert _ready(dataset) == ("True", "")
    first = await learning.round(name, 1)
    assert first.samples > 0

    store.stop()
    dataset = await _dataset(learning, name, lambda found: "could not be looked at" in _ready(found)[1])
    assert _ready(dataset)[0] == "True"
    second = await learning.round(name, 2)
    assert len(second.versions) == 1

    await asyncio.to_thread(store.start)
    await asyncio.to_thread(store.put, "labelled.npz", rows(KNOWN + 50))
    await _dataset(
        learning, name, lambda found: _ready(found) == ("True", "") and found.status.sample_count == KNOWN + 50
    )
    await learning.counted(name, 50)
    told = [path for path in learning.world.playground.state_dir.rglob("*") if path.is_file() and _holds(path, store)]
    assert told == [], "the secret was written down"
    await learning.delete(name)


async def _dataset(learning: LearningWorld, name: str, fits: Callable[[Dataset], bool]) -> Dataset:
    """As soon as it is so. Something happens beside the file meanwhile, so that the edge looks earlier than it would."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await learning.world.cloud.get("Dataset", f"{name}-labelled")
            assert isinstance(found, Dataset)
            if fits(found):
                return found
            for folder in (learning.world.folder(EDGE) / "fetched").glob("*"):
                (folder / "hint").touch()
            await asyncio.sleep(0.5)


def _ready(dataset: Dataset) -> tuple[str, str]:
    condition = find_condition(dataset.status.conditions, ConditionType.READY)
    return (condition.status, condition.message) if condition else ("", "")


def _holds(path: Path, store: Store) -> bool:
    try:
        return store.secret_word.encode() in path.read_bytes()
    except OSError:
        return False
