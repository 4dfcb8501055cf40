"""Passwords are random, private and the same after a restart."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from edgeai.bus.credentials import Credential, Credentials, read_credentials_file, write_credentials_file
from edgeai.errors import AddressError, DamagedFile, NotFound

URL = "nats://127.0.0.1:12345"


def test_a_credentials_file_reads_as_it_was_written(tmp_path: Path):
    write_credentials_file(tmp_path / "worker.json", URL, "worker", "secret")
    assert read_credentials_file(tmp_path / "worker.json") == Credential(URL, "worker", "secret")


def test_a_credentials_file_is_readable_by_its_owner_only(tmp_path: Path):
    path = tmp_path / "worker.json"
    path.write_text("{}")
    path.chmod(0o644)
    write_credentials_file(path, URL, "worker", "secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_writing_leaves_no_other_file_behind(tmp_path: Path):
    write_credentials_file(tmp_path / "worker.json", URL, "worker", "secret")
    assert [path.name for path in tmp_path.iterdir()] == ["worker.json"]


def test_a_missing_credentials_file_is_named(tmp_path: Path):
    with pytest.raises(NotFound, match=r"nobody\.json"):
        read_credentials_file(tmp_path / "nobody.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"secret",
        b"[]",
        b"null",
        b'{"url": "u", "username": "n"}',
        b'{"url": 1, "username": "n", "password": "p"}',
    ],
)
def test_a_damaged_credentials_file_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(DamagedFile):
        read_credentials_file(tmp_path / "bad.json")


def test_a_damaged_credentials_file_shows_nothing_of_its_content(tmp_path: Path):
    (tmp_path / "bad.json").write_text('{"password": "hush"')
    with pytest.raises(DamagedFile) as caught:
        read_credentials_file(tmp_path / "bad.json")
    assert "hush" not in f"{caught.value!r} {caught.value.__context__ if not caught.value.__suppress_context__ else ''}"


def test_a_password_stays_the_same_across_restarts(tmp_path: Path):
    first = Credentials(tmp_path).issue("cloud", "worker", URL)
    assert Credentials(tmp_path).issue("cloud", "worker", URL) == first


def test_every_user_has_a_password_of_its_own(tmp_path: Path):
    credentials = Credentials(tmp_path)
    pairs = [("cloud", "worker"), ("cloud", "operator"), ("edge1", "worker"), ("edge2", "worker")]
    assert len({credentials.issue(broker, user, URL).password for broker, user in pairs}) == len(pairs)


def test_a_password_has_192_random_bits(tmp_path: Path):
    assert len(Credentials(tmp_path).issue("cloud", "worker", URL).password) == 32


def test_a_new_url_keeps_the_password(tmp_path: Path):
    credentials = Credentials(tmp_path)
    before = credentials.issue("cloud", "worker", URL)
    credentials.issue("cloud", "worker", "nats://127.0.0.1:2")
    assert read_credentials_file(credentials.path("cloud", "worker")) == Credential(
        "nats://127.0.0.1:2", "worker", before.password
    )


def test_issued_users_are_listed_per_broker(tmp_path: Path):
    credentials = Credentials(tmp_path)
    for broker, user in (("cloud", "worker"), ("cloud", "edge-edge1"), ("edge1", "bridge")):
        credentials.issue(broker, user, URL)
    assert credentials.usernames("cloud") == ["edge-edge1", "worker"]


@pytest.mark.parametrize("broker", ["", "..", "a/b", "*", "a.b"])
def test_a_broker_name_that_is_no_name_is_refused(tmp_path: Path, broker: str):
    with pytest.raises(AddressError):
        Credentials(tmp_path).issue(broker, "worker", URL)


def test_the_repr_of_a_credential_hides_the_password():
    assert "secret" not in repr(Credential(URL, "worker", "secret"))
