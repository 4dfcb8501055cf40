"""Nobody comes in who may not: hosts, origins, roles, CSRF, links, rate limits, headers, hostile names."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import httpx
import pytest
from memory_portal import BASE_URL, RunningPortal, closed, condition, running_portal, started, worker_row

from edgeai.errors import Refused
from edgeai.portal.access import Role
from edgeai.portal.api import OPERATIONS
from edgeai.portal.app import create_app, one_time_link
from edgeai.portal.pages import PAGES
from edgeai.portal.settings import PortalSettings

V1 = "/api/v1"
SCRIPT = "<script>alert('x')</script>"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def filled(path: str) -> str:
    return (
        path.replace("{name}", "x")
        .replace("{worker}", "w")
        .replace("{version}", "1")
        .replace("{kind}", "federatedtasks")
    )


def lines(running: RunningPortal) -> list[dict]:
    path = running.portal.audit.path
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- who may come in


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_no_operation_answers_without_a_login(running: RunningPortal, operation) -> None:
    async with running.client(None) as nobody:
        refused = await nobody.request(operation.method, filled(operation.path))
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    "operation",
    [operation for operation in OPERATIONS if operation.role > Role.VIEWER],
    ids=lambda operation: operation.name,
)
async def test_a_lower_role_is_refused(running: RunningPortal, operation) -> None:
    async with running.client(Role(operation.role - 1)) as lower:
        refused = await lower.request(operation.method, filled(operation.path))
    assert (refused.status_code, operation.role.word in refused.json()["detail"]) == (403, True)


def test_everything_that_changes_something_needs_more_than_looking_and_is_audited() -> None:
    for operation in OPERATIONS:
        changes = operation.method not in ("GET", "HEAD")
        assert bool(operation.action) is changes, operation.name
        assert not changes or operation.role >= Role.OPERATOR, operation.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_a_page_sends_who_is_not_logged_in_to_the_login(running: RunningPortal, page) -> None:
    async with running.client(None) as nobody:
        sent = await nobody.get(filled(page.path))
    assert (sent.status_code, sent.headers["location"].startswith("/login?next=")) == (303, True)


async def test_metrics_need_a_login_and_health_does_not(running: RunningPortal) -> None:
    async with running.client(None) as nobody, running.client(Role.VIEWER) as viewer:
        answers = [await nobody.get("/metrics"), await nobody.get("/healthz"), await viewer.get("/metrics")]
    assert [answer.status_code for answer in answers] == [401, 200, 200]
    assert "edgeai_portal_requests_total" in answers[2].text


async def test_a_revoked_token_and_its_sessions_are_out(running: RunningPortal) -> None:
    token = running.portal.access.create_token("phone", Role.VIEWER)
    session = running.portal.access.open_session(running.portal.access.bearer(token), 60)  # type: ignore[arg-type]
    async with running.client(Role.ADMIN) as admin:
        assert (await admin.delete(f"{V1}/tokens/phone")).status_code == 204
    assert running.portal.access.bearer(token) is None
    assert running.portal.access.session(session.cookie) is None


async def test_a_token_is_made_once_and_never_shown_again(running: RunningPortal) -> None:
    async with running.client(Role.ADMIN) as admin:
        made = (await admin.post(f"{V1}/tokens", json={"name": "ci", "role": "viewer"})).json()
        again = await admin.post(f"{V1}/tokens", json={"name": "ci", "role": "admin"})
        listed = await admin.get(f"{V1}/tokens")
    async with running.client(None, Authorization=f"Bearer {made['token']}") as ci:
        assert (await ci.get(f"{V1}/me")).json()["role"] == "viewer"
    assert again.status_code == 409
    assert made["token"] not in listed.text


async def test_no_secret_lies_readable_in_the_state_directory(running: RunningPortal) -> None:
    link = running.portal.access.issue_link()
    token = running.portal.access.create_token("ci", Role.ADMIN)
    async with running.browser() as browser:
        cookie = next(iter(browser.cookies.values()))
    folder = running.portal.settings.state_dir
    files = [path for path in folder.rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() + path.name.encode() for path in files)
    assert not any(secret.encode() in content for secret in (link, token, cookie))
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


# --- links and sessions


async def test_a_link_works_once(running: RunningPortal) -> None:
    secret = running.portal.access.issue_link()
    async with running.client(None) as first, running.client(None) as second:
        answers = [await client.get("/login", params={"link": secret}) for client in (first, second)]
        assert (await first.get("/")).status_code == 200
    assert [answer.status_code for answer in answers] == [200, 401]


async def test_a_link_expires(tmp_path: Path, running: RunningPortal, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = running.portal.access.issue_link()
    now = running.portal.access._wall()
    monkeypatch.setattr(running.portal.access, "_wall", lambda: now + 601)
    async with running.client(None) as late:
        assert (await late.get("/login", params={"link": secret})).status_code == 401


async def test_the_link_that_is_printed_is_the_one_that_works(running: RunningPortal) -> None:
    link = one_time_link(running.portal.settings.state_dir, BASE_URL, role=Role.VIEWER)
    async with running.client(None) as client:
        await client.get(link)
        assert (await client.get(f"{V1}/me")).json()["role"] == "viewer"


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(running: RunningPortal) -> None:
    async with running.client(None) as client:
        answer = await client.get("/login", params={"link": running.portal.access.issue_link()})
    cookie = answer.headers["set-cookie"].lower()
    assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/"))


async def test_a_session_survives_a_restart_of_the_portal_and_ends_by_itself(tmp_path: Path) -> None:
    async with running_portal(tmp_path) as first, first.browser() as browser:
        cookies = browser.cookies
    async with running_portal(tmp_path) as second, second.client(None) as client:
        client.cookies = cookies
        assert (await client.get(f"{V1}/me")).status_code == 200
        now = second.portal.access._wall()
        second.portal.access._wall = lambda: now + 13 * 3600
        assert (await client.get(f"{V1}/me")).status_code == 401


async def test_logging_out_ends_the_session(running: RunningPortal) -> None:
    async with running.browser() as browser:
        body = f"csrf_token={browser.headers['X-CSRF-Token']}"
        cookies = dict(browser.cookies)
        assert (await browser.post("/logout", content=body, headers=FORM)).status_code == 303
        browser.cookies.update(cookies)
        assert (await browser.get(f"{V1}/me")).status_code == 401


async def test_a_token_logs_in_on_the_page_and_leads_on(running: RunningPortal) -> None:
    token = running.portal.access.create_token("me", Role.OPERATOR)
    async with running.client(None) as client:
        body = httpx.QueryParams({"token": token, "next": "/tasks"})
        answer = await client.post("/login", content=str(body), headers=FORM)
        assert (answer.status_code, answer.headers["location"]) == (303, "/tasks")
        assert (await client.get(f"{V1}/me")).json()["role"] == "operator"


@pytest.mark.parametrize(
    "elsewhere", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:x", "/a\nb"]
)
async def test_a_login_never_leads_elsewhere(running: RunningPortal, elsewhere: str) -> None:
    token = running.portal.access.create_token("me", Role.VIEWER)
    async with running.client(None) as client:
        body = str(httpx.QueryParams({"token": token, "next": elsewhere}))
        assert (await client.post("/login", content=body, headers=FORM)).headers["location"] == "/"


async def test_failed_logins_are_limited_and_the_right_token_comes_in_all_the_same(running: RunningPortal) -> None:
    limit = running.portal.settings.login_attempts
    token = running.portal.access.create_token("me", Role.VIEWER)
    async with running.client(None) as client:
        tried = [await client.post("/login", content="token=wrong", headers=FORM) for _ in range(limit + 1)]
        right = await client.post("/login", content=f"token={token}", headers=FORM)
    assert [answer.status_code for answer in tried] == [401] * limit + [429]
    assert int(tried[-1].headers["retry-after"]) > 0
    assert right.status_code == 303


async def test_a_program_with_a_revoked_token_does_not_lock_out_a_link(running: RunningPortal) -> None:
    limit, link = running.portal.settings.login_attempts, running.portal.access.issue_link()
    async with running.client(None, Authorization="Bearer revoked") as program, running.client(None) as person:
        tried = [await program.get("/metrics") for _ in range(limit + 1)]
        wrong = await person.get("/login", params={"link": "x" * 43})
        right = await person.get("/login", params={"link": link})
    assert (tried[-1].status_code, wrong.status_code, right.status_code) == (429, 429, 200)


async def test_who_only_asks_for_the_head_does_not_use_a_link_up(running: RunningPortal) -> None:
    link = running.portal.access.issue_link()
    async with running.client(None) as client:
        head = await client.head("/login", params={"link": link})
        assert (head.status_code, "set-cookie" in head.headers) == (200, False)
        assert (await client.get("/login", params={"link": link})).status_code == 200


async def test_a_known_bearer_token_is_not_held_up_by_the_failures_of_others(running: RunningPortal) -> None:
    limit = running.portal.settings.login_attempts
    async with running.client(None, Authorization="Bearer wrong") as wrong, running.client(Role.VIEWER) as right:
        tried = [await wrong.get(f"{V1}/me") for _ in range(limit + 1)]
        assert (await right.get(f"{V1}/me")).status_code == 200
    assert [answer.status_code for answer in tried] == [401] * limit + [429]


async def test_guessing_does_not_fill_the_audit_log(running: RunningPortal) -> None:
    async with running.client(None) as client:
        for _ in range(3 * running.portal.settings.login_attempts):
            await client.post("/login", content="token=wrong", headers=FORM)
            await client.post(f"{V1}/apply", content="x")
    assert len(lines(running)) == running.portal.settings.login_attempts


# --- where requests come from


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost:80:80", "[::1", "a b"])
async def test_a_foreign_host_is_refused_everywhere(running: RunningPortal, host: str) -> None:
    async with running.client(Role.ADMIN, Host=host) as client:
        answers = [await client.get(path) for path in ("/", "/healthz", f"{V1}/me", "/static/x")]
    assert {answer.status_code for answer in answers} == {400}


@pytest.mark.parametrize("host", ["127.0.0.1:8123", "localhost:1", "LOCALHOST", "[::1]:8123", "portal.example:443"])
async def test_own_names_are_served(tmp_path: Path, host: str) -> None:
    names = ("portal.example",)
    async with (
        running_portal(tmp_path, allowed_hosts=names) as running,
        running.client(Role.ADMIN, Host=host) as client,
    ):
        assert (await client.get(f"{V1}/me")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://localhost:8123"},
        {"Origin": "ftp://127.0.0.1:8123"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
async def test_a_change_from_another_origin_is_refused_even_with_the_right_token(
    running: RunningPortal, headers: dict[str, str]
) -> None:
    async with running.browser() as browser:
        refused = await browser.post(f"{V1}/federatedtasks/x/pause", headers=headers)
    assert refused.status_code == 403


async def test_a_change_from_the_own_origin_is_taken(running: RunningPortal) -> None:
    async with running.browser() as browser:
        headers = {"Origin": BASE_URL, "Sec-Fetch-Site": "same-origin"}
        assert (await browser.post(f"{V1}/federatedtasks/x/pause", headers=headers)).status_code == 404


async def test_a_login_form_from_another_site_is_refused(running: RunningPortal) -> None:
    token = running.portal.access.create_token("me", Role.VIEWER)
    async with running.client(None) as client:
        refused = await client.post(
            "/login", content=f"token={token}", headers={**FORM, "Origin": "https://evil.example"}
        )
    assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)


@pytest.mark.parametrize("csrf", [None, "", "0" * 64, "other session"])
async def test_a_cookie_alone_changes_nothing(running: RunningPortal, csrf: str | None) -> None:
    async with running.browser() as other, running.browser() as browser:
        sent = other.headers["X-CSRF-Token"] if csrf == "other session" else csrf
        del browser.headers["X-CSRF-Token"]
        headers = {} if sent is None else {"X-CSRF-Token": sent}
        refused = await browser.post(f"{V1}/federatedtasks/x/pause", headers=headers)
    assert (refused.status_code, "X-CSRF-Token" in refused.json()["detail"]) == (403, True)


# --- what goes out


@pytest.mark.parametrize("path", ["/login", "/", f"{V1}/overview", "/healthz", "/nothing", "/static/nothing.js"])
async def test_every_answer_has_the_headers_of_a_closed_page(running: RunningPortal, path: str) -> None:
    async with running.client(Role.ADMIN) as client:
        headers = (await client.get(path)).headers
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in headers["content-security-policy"]
    assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
    assert headers["cache-control"] == ("no-cache" if path.startswith("/static/") else "no-store")


async def test_script_in_names_reasons_and_searches_stays_text(running: RunningPortal) -> None:
    task = await running.memory.task(
        conditions=[condition("Degraded", "True", SCRIPT)],
        phase="Succeeded",
        workers=[worker_row("work1", "edge1") | {"reason": SCRIPT}],
    )
    running.memory.emit(started(task, 1, "work1"), task)
    running.memory.emit(closed(task, 1, refused={"work1": SCRIPT}), task)
    await running.until(lambda: running.live.entries["FederatedTask"] and running.live.timelines)
    async with running.browser() as browser:
        paths = ["/", "/tasks", "/tasks/federatedtasks/digits", f"/edges?search={SCRIPT}", f"/tasks/{SCRIPT}/x"]
        pages = [(await browser.get(path)).text for path in paths]
        login = (await browser.get("/login", params={"next": f"/{SCRIPT}"})).text
    assert [
        path for path, page in zip([*paths, "login"], [*pages, login], strict=True) if "<script>alert" in page
    ] == []
    assert "alert(" in pages[2]


@pytest.mark.parametrize(
    "name", ["%2e%2e", "..%2f..%2fetc", "a%2fb", "a%00b", "A", "x" * 51, "%3Cscript%3E", "a+b", "%F0%9F%98%80"]
)
async def test_a_name_that_is_a_path_or_worse_is_not_found(running: RunningPortal, name: str) -> None:
    async with running.client(Role.ADMIN) as admin:
        answers = [
            await admin.get(f"{V1}/models/{name}/versions/1/content"),
            await admin.get(f"{V1}/federatedtasks/{name}/workers/{name}/log"),
            await admin.get(f"{V1}/datasets/{name}"),
            await admin.get(f"/static/{name}"),
        ]
    assert {answer.status_code for answer in answers} <= {404, 401}
    assert all("root:" not in answer.text for answer in answers)


async def test_nothing_outside_the_static_folder_is_served(running: RunningPortal) -> None:
    async with running.client(None) as client:
        for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd"):
            assert (await client.get(path)).status_code == 404, path


# --- how it is served


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "portal.example", "::"])
def test_elsewhere_than_on_loopback_it_is_not_served_without_tls(tmp_path: Path, host: str) -> None:
    async def nowhere() -> None: ...

    with pytest.raises(Refused, match="TLS"):
        create_app(nowhere, PortalSettings(tmp_path, host=host))  # type: ignore[arg-type]


def test_half_of_tls_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="both"):
        PortalSettings(tmp_path, tls_certificate=tmp_path / "cert.pem").check()


async def test_with_tls_the_cookie_and_the_browser_stay_on_it(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).touch()
    tls = {"tls_certificate": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    async with running_portal(tmp_path / "portal", **tls) as running, running.client(None) as client:
        answer = await client.get("/login", params={"link": running.portal.access.issue_link()})
    assert "secure" in answer.headers["set-cookie"].lower()
    assert "strict-transport-security" in answer.headers


# --- the audit log


async def test_the_audit_log_says_who_did_what_with_which_result(running: RunningPortal) -> None:
    async with running.browser(Role.OPERATOR) as browser, running.client(Role.VIEWER) as viewer:
        await browser.post(f"{V1}/federatedtasks/x/pause")
        await viewer.delete(f"{V1}/models/cnn")
    found = [(line["who"], line["role"], line["action"], line["target"], line["result"]) for line in lines(running)]
    assert found == [
        ("owner", "operator", "login", "by link", 200),
        ("owner", "operator", "pause", f"{V1}/federatedtasks/x/pause", 404),
        (found[2][0], "viewer", "delete", f"{V1}/models/cnn", 403),
    ]


async def test_only_an_administrator_reads_the_audit_log(running: RunningPortal) -> None:
    async with running.client(Role.ADMIN) as admin, running.client(Role.OPERATOR) as operator:
        await operator.post(f"{V1}/federatedtasks/x/pause")
        answer, refused = await admin.get(f"{V1}/audit"), await operator.get(f"{V1}/audit")
    assert (refused.status_code, answer.json()["items"][0]["action"]) == (403, "pause")
