"""Tokens, links, sessions, counted attempts and the audit log, below HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeai.errors import NotFound, Refused
from edgeai.portal import access as access_module
from edgeai.portal.access import Access, Attempts, Identity, Role
from edgeai.portal.audit import AuditLog, Line

LINE = Line("2030-01-31T12:00:00Z", "owner", "admin", "127.0.0.1", "apply", "/api/v1/apply", 200)


def test_each_role_may_do_what_those_before_it_may() -> None:
    assert Role.VIEWER < Role.OPERATOR < Role.ADMIN


def test_a_role_that_does_not_exist_is_refused() -> None:
    with pytest.raises(Refused, match="viewer, operator or admin"):
        Role.named("root")


@pytest.mark.parametrize("secret", ["", "../../etc/passwd", "x" * 5000, "a/b" * 20, "\0" * 30])
def test_what_cannot_be_a_secret_finds_nothing(tmp_path: Path, secret: str) -> None:
    access = Access(tmp_path)
    access.create_token("ci", Role.ADMIN)
    assert (access.bearer(secret), access.session(secret), access.use_link(secret)) == (None, None, None)
    access.end_session(secret)


def test_a_damaged_file_lets_nobody_in(tmp_path: Path) -> None:
    access = Access(tmp_path)
    token = access.create_token("ci", Role.ADMIN)
    [path] = (tmp_path / "tokens").iterdir()
    for content in (b"", b"[]", b'{"name": "ci", "role": "root", "created": 1, "expires": null}'):
        path.write_bytes(content)
        assert access.bearer(token) is None
        assert access.tokens() == []


def test_a_token_of_one_kind_is_not_one_of_another(tmp_path: Path) -> None:
    access = Access(tmp_path)
    token, link = access.create_token("ci", Role.ADMIN), access.issue_link()
    assert (access.session(token), access.use_link(token), access.bearer(link)) == (None, None, None)


def test_a_name_of_a_token_is_a_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a name has"):
        Access(tmp_path).create_token("../x", Role.VIEWER)


def test_what_is_not_there_cannot_be_revoked(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Access(tmp_path).revoke_token("ci")


def test_sessions_have_an_end_and_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "SESSIONS_LIMIT", 3)
    now = 1000.0
    access = Access(tmp_path, lambda: now)
    cookies = []
    for _ in range(5):
        now += 1
        cookies.append(access.open_session(Identity("me", Role.VIEWER), 60).cookie)
    assert [access.session(cookie) is not None for cookie in cookies] == [False, False, True, True, True]
    now += 61
    access.open_session(Identity("me", Role.VIEWER), 60)
    assert len(list((tmp_path / "sessions").iterdir())) == 1


def test_the_csrf_token_belongs_to_one_session_and_does_not_show_it() -> None:
    one, other = (Identity("me", Role.VIEWER, cookie) for cookie in ("a" * 43, "b" * 43))
    assert one.csrf_token != other.csrf_token
    assert "a" * 10 not in one.csrf_token
    assert Identity("program", Role.VIEWER).csrf_token == ""


def test_an_address_waits_until_its_oldest_failure_is_out_of_the_window() -> None:
    now = 0.0
    attempts = Attempts(2, 60, lambda: now)
    attempts.failed("a")
    now = 20.0
    attempts.failed("a")
    assert (attempts.wait_s("a"), attempts.wait_s("b")) == (40.0, 0.0)
    now = 60.0
    assert attempts.wait_s("a") == 0.0


def test_many_addresses_together_are_limited_as_well() -> None:
    attempts = Attempts(2, 60, lambda: 0.0)
    for number in range(20):
        attempts.failed(str(number))
    assert attempts.wait_s("new") > 0


async def test_the_audit_log_is_only_appended_to(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    await audit.write(LINE)
    before = audit.path.read_bytes()
    await audit.write(LINE)
    assert audit.path.read_bytes().startswith(before)
    assert len(await audit.newest(10)) == 2


async def test_a_line_of_the_audit_log_cannot_be_forged_from_inside(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    await audit.write(Line("t", "x\n{}\n", "admin", "127.0.0.1", "login", "\r\n", 200))
    assert [json.loads(line)["who"] for line in audit.path.read_text().splitlines()] == ["x\n{}\n"]


async def test_full_files_are_set_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, file_bytes=200, files=2)
    for number in range(6):
        await audit.write(Line("t", str(number), "admin", "127.0.0.1", "apply", "", 200))
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == [
        "audit-000004.jsonl",
        "audit-000005.jsonl",
        "audit.jsonl",
    ]
    assert [line["who"] for line in await audit.newest(10)] == ["5", "4", "3"]


async def test_a_log_that_cannot_be_written_says_so_until_it_can(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit")
    (tmp_path / "audit").write_text("in the way")
    await audit.write(LINE)
    assert "cannot be written" in audit.problem
    (tmp_path / "audit").unlink()
    await audit.write(LINE)
    assert audit.problem == ""
