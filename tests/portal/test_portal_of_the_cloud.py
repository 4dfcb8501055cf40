"""The portal as a child of `edgeai cloud`, and who may come into it by the command line of its machine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from edgeai.cli.takedown import take_down

pytestmark = pytest.mark.timeout(180)
LIMIT_S = 60


@dataclass
class Cloud:
    """One cloud with a portal, and commands on its machine."""

    folder: Path
    daemon: subprocess.Popen[str] | None = None
    url: str = ""

    @property
    def log(self) -> str:
        return (self.folder / "cloud.log").read_text()

    def start(self, *options: str) -> str:
        """Returns the line that says that it is ready."""
        argv = [sys.executable, "-m", "edgeai", "cloud", "--state-dir", str(self.folder / "cloud"), *options]
        with (self.folder / "cloud.log").open("a") as log:
            self.daemon = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.daemon.stdout is not None
        line = next((line for line in self.daemon.stdout if line.startswith("ready ")), "")
        assert line, self.log
        found = re.search(r" portal=(\S+)", line)
        self.url = found[1] if found else ""
        return line

    def end(self) -> None:
        daemon, self.daemon = self.daemon, None
        if daemon is not None:
            daemon.terminate()
            try:
                daemon.communicate(timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                daemon.kill()  # it would start again what is ended after it
                daemon.communicate()
                raise

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "edgeai", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    def portal(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("portal", *arguments, "--state-dir", str(self.folder / "cloud"))

    def client(self, token: str = "") -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=30)

    @property
    def process(self) -> int:
        """Of the portal."""
        return int(json.loads((self.folder / "cloud" / "run" / "portal-cloud.json").read_bytes())["pid"])


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.05)


def answers(cloud: Cloud) -> bool:
    try:
        with cloud.client() as client:
            return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    found = Cloud(tmp_path_factory.mktemp("machine"))
    try:
        found.start("--portal-port", "0")
        yield found
    finally:
        try:
            found.end()
        finally:
            asyncio.run(take_down(found.folder / "cloud"))
    assert left_in(found.folder) == [], "processes were left behind"


def left_in(folder: Path) -> list[list[str]]:
    """Command lines of the processes that name this folder."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(folder) in " ".join(line)]


def test_a_token_of_the_command_line_lets_in_until_it_is_revoked(cloud: Cloud) -> None:
    made = cloud.portal("token", "create", "reader", "--role", "viewer")
    assert (made.returncode, made.stdout.count("\n"), made.stderr) == (0, 1, "")
    with cloud.client(made.stdout.strip()) as client:
        eventually(lambda: answers(cloud))
        assert client.get("/api/v1/me").json()["role"] == "viewer"
        assert cloud.portal("token", "revoke", "reader").returncode == 0
        assert client.get("/api/v1/me").status_code == 401


def test_tokens_are_listed_without_their_secrets(cloud: Cloud) -> None:
    secret = cloud.portal("token", "create", "listed", "--role", "operator").stdout.strip()
    told = cloud.portal("token", "list").stdout
    assert re.search(r"^listed +operator", told, re.MULTILINE)
    assert secret not in told


def test_what_the_command_line_did_is_in_the_audit_log(cloud: Cloud) -> None:
    secret = cloud.portal("token", "create", "noted", "--role", "admin").stdout.strip()
    cloud.portal("token", "revoke", "noted")
    text = (cloud.folder / "cloud" / "portal" / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    did = [(line["action"], line["target"], line["address"]) for line in lines if "noted" in line["target"]]
    assert did == [("create token", "noted (admin)", "command line"), ("revoke token", "noted", "command line")]
    assert secret not in text


def test_a_second_token_of_a_name_is_refused_in_one_line(cloud: Cloud) -> None:
    cloud.portal("token", "create", "twice", "--role", "viewer")
    again = cloud.portal("token", "create", "twice", "--role", "viewer")
    assert (again.returncode, again.stdout) == (4, "")
    assert again.stderr == "edgeai: there is a token twice already: revoke it first\n"


def test_a_token_that_is_not_there_cannot_be_revoked(cloud: Cloud) -> None:
    done = cloud.portal("token", "revoke", "nobody")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)


def test_a_folder_without_a_portal_is_named_and_stays_empty(cloud: Cloud, tmp_path: Path) -> None:
    done = cloud.run("portal", "token", "create", "lost", "--role", "admin", "--state-dir", str(tmp_path))
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (3, "", [])
    [line] = done.stderr.splitlines()
    assert str(tmp_path) in line


def test_a_link_of_the_command_line_logs_in_once(cloud: Cloud) -> None:
    link = cloud.portal("link", "--role", "viewer").stdout.strip()
    with cloud.client() as first, cloud.client() as second:
        assert first.get(link).status_code == 200
        assert first.get("/api/v1/me").json()["role"] == "viewer"
        assert second.get(link).status_code == 401


def test_the_log_of_the_portal_holds_no_link(cloud: Cloud) -> None:
    text = (cloud.folder / "cloud" / "portal.log").read_text()
    assert f"ready portal={cloud.url}" in text
    assert "link=" not in text


def test_a_portal_that_is_killed_is_one_line_in_the_log_and_starts_again(cloud: Cloud) -> None:
    before, told = cloud.process, len(cloud.log)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: cloud.process != before and answers(cloud))
    lines = [line for line in cloud.log[told:].splitlines() if "portal" in line and "warning" in line]
    assert len(lines) == 1
    assert "child_exited" in lines[0]


def test_a_restarted_daemon_finds_its_portal_again_and_a_change_of_its_options_starts_another(cloud: Cloud) -> None:
    before, url = cloud.process, cloud.url
    cloud.end()
    assert answers(cloud), "it goes on without the daemon"
    cloud.start("--portal-port", "0")
    assert (cloud.process, cloud.url) == (before, url)
    cloud.end()
    cloud.start("--portal-port", "0", "--portal-name", "portal.example.org")
    assert (cloud.process != before, cloud.url) == (True, url)
    cloud.end()
    line = cloud.start()
    assert " portal=" not in line
    assert not answers(Cloud(cloud.folder, url=url)), "it was taken out of the options"


def test_stop_ends_the_portal_as_well(cloud: Cloud) -> None:
    cloud.end()
    cloud.start("--portal-port", "0")
    done = cloud.run("stop", "--state-dir", str(cloud.folder / "cloud"))
    cloud.daemon.communicate(timeout=LIMIT_S)  # type: ignore[union-attr]
    cloud.daemon = None
    assert "portal-cloud stopped" in done.stdout
    assert not answers(cloud)


def test_a_portal_beyond_loopback_without_tls_is_refused_before_anything_starts(cloud: Cloud, tmp_path: Path) -> None:
    done = cloud.run("cloud", "--state-dir", str(tmp_path / "c"), "--portal-port", "0", "--portal-host", "0.0.0.0")
    assert (done.returncode, done.stdout, (tmp_path / "c").exists()) == (4, "", False)
    assert "TLS" in done.stderr


def test_the_cloud_serves_its_numbers_where_its_ready_line_says_and_stays_there(cloud: Cloud) -> None:
    cloud.end()
    lines = []
    for _ in range(2):
        lines.append(cloud.start("--portal-port", "0", "--metrics-port", "0"))
        found = re.search(r" metrics=(\S+)", lines[-1])
        assert found, lines[-1]
        text = httpx.get(found[1], trust_env=False, timeout=30).text
        buses = {sample.labels["bus"] for sample in _samples(text, "edgeai_bus_connected")}
        assert buses == {"controller", "coordinator"}
        cloud.end()
    assert lines[0] == lines[1]
    cloud.start("--portal-port", "0")


def _samples(text: str, name: str) -> list[Sample]:
    return [each for family in text_string_to_metric_families(text) for each in family.samples if each.name == name]
