"""How fast the portal is with many edges, tasks and open pages: from a write in the cloud to the page that shows it.

    python tests/benchmarks/portal.py [--seconds 60] [--pages 50] [--browser /usr/bin/chromium] [--json FILE]

Each in a process of its own: a nats-server; the load (`portal_scripts/load.py`: 1,000 edges that beat, 200 tasks, 20 rounds a
second as facts, status writes and signals, with a history); the portal (`portal_scripts/portal.py`); and here, the open pages.
A page does what a browser's window does (`static/js/live.js`): it follows /api/v1/live with its topics, and reads the page
again when something on it has changed, at most twice a second.

A delay goes from the moment when the store has acknowledged the status write of a round to the moment when a page has been read
that shows this round whole (on a task's page also its closed row of the history). `calm` is the anchor: the same pages, while
edges give signs of life and one round a second is written. With `--browser` one real window beside them tells when its text has
changed.

Ends with 1 if a page never showed a round, or an answer was an error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import platform
import re
import statistics
import sys
import tempfile
import time
import zlib
from asyncio.subprocess import PIPE, Process
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from edgeai.bus.embedded import Programs
from edgeai.portal.access import Access, Role
from edgeai.portal.app import one_time_link

HERE = Path(__file__).parent
SCRIPTS = HERE / "portal_scripts"
PACE_S, PATIENCE_S, LATE_S = 0.5, 120.0, 30.0
"""Pace as in live.js; what has not been shown so long after the end of the time never will be."""
PAGES = {"overview": 4, "tasks": 4, "edges": 4, "task": 30, "models": 2, "model": 2, "datasets": 2, "dataset": 2}
ADDRESSES = {
    "overview": "/",
    "tasks": "/tasks",
    "edges": "/edges",
    "task": "/tasks/federatedtasks/task{}",
    "models": "/models",
    "model": "/models/model{}",
    "datasets": "/datasets",
    "dataset": "/datasets/data{}",
}
_ROW = re.compile(r'id="row-federatedtask-(task\d+)".*?<span class="n fleeting">(\d+)', re.DOTALL)
_STATUS = re.compile(r'<span class="fleeting">(\d+)(?: of|<)')
_CLOSED = re.compile(r'id="round-(\d+)"(?:(?!id="round-).)*?data-state="closed"', re.DOTALL)
_TOPICS, _SEQUENCE = re.compile(r'data-topics="([^"]*)"'), re.compile(r'name="sequence" content="(\d+)"')


class Wrong(Exception):
    """What was measured is not what should have been."""


@dataclass(frozen=True, slots=True)
class Plan:
    seconds: float
    warm_up_s: float
    pages: int
    browser: str


# --- HTTP, as small as it can be: what asks must not cost more than what is asked


class Http:
    """One kept connection."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str, seen: str = "") -> tuple[str, int]:
        """The body as text, and its bytes on the wire. Raises Wrong."""
        more = f"X-Part: live\r\nX-Seen: {seen}\r\n" if seen else ""
        try:
            head, reader = await self._asked(path, more)
        except (asyncio.IncompleteReadError, ConnectionError):  # a server closes what is idle; a browser asks again
            self.close()
            head, reader = await self._asked(path, more)
        body = await reader.readexactly(int(head.get("content-length", 0)))
        text = zlib.decompress(body, 31) if head.get("content-encoding") == "gzip" else body
        return text.decode(), len(body)

    async def events(self, path: str) -> AsyncIterator[dict[str, str]]:
        """Events of a stream, with the bytes that they took as `size`."""
        _, reader = await self._asked(path, "")
        rest = b""
        while length := int(await reader.readline() or b"0", 16):
            rest += (await reader.readexactly(length + 2))[:-2]
            *whole, rest = rest.split(b"\r\n\r\n")
            for event in whole:
                fields = dict(line.split(": ", 1) for line in event.decode().split("\r\n") if not line.startswith(":"))
                yield fields | {"size": str(len(event))}

    def another(self) -> Http:
        return Http(self._port, self._token)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _asked(self, path: str, more: str) -> tuple[dict[str, str], asyncio.StreamReader]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**22)
        reader, writer = self._streams
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nAuthorization: Bearer {self._token}\r\n"
            f"Accept: text/html\r\nAccept-Encoding: gzip\r\n{more}\r\n".encode()
        )
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        if status.split()[1] != "200":
            raise Wrong(f"{path}: {status}")
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}, reader


# --- a page


@dataclass(slots=True)
class Page:
    """An open window. `shown`: when which round of a task was there first."""

    kind: str
    path: str
    http: Http
    stream: Http
    shown: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    reads: list[float] = field(default_factory=list)
    bytes_read: int = 0
    _seen: str = ""
    _dirty: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, up: asyncio.Semaphore) -> None:
        async with up:
            text, _ = await self.http.get(self.path)
        topics, [sequence] = _TOPICS.findall(text)[0], _SEQUENCE.findall(text)
        followed = {topic.partition(":")[0] for topic in topics.split(",")}
        followed -= set() if self.kind == "overview" else {"Overview"}
        async with asyncio.TaskGroup() as group:
            group.create_task(
                self._listen(f"/api/v1/live?brief=true&since={sequence}&topics={quote(topics, safe='')}", followed)
            )
            group.create_task(self._read())

    async def _listen(self, path: str, followed: set[str]) -> None:
        async for event in self.stream.events(path):
            self.bytes_read += int(event["size"])
            if "data" not in event:
                continue
            self._seen = event.get("id", self._seen)
            if event["event"] == "reset":
                raise Wrong(f"{self.path}: its place in the changes is not known any more")
            if json.loads(event["data"]).get("topic") in followed:
                self._dirty.set()

    async def _read(self) -> None:
        while True:
            await self._dirty.wait()
            begun = time.monotonic()
            self._dirty.clear()
            text, size = await self.http.get(self.path, self._seen)
            now = time.monotonic()
            self.reads.append(now - begun)
            self.bytes_read += size
            for task, number in self._rounds(text):
                if not self.shown[task] or self.shown[task][-1][1] < number:
                    self.shown[task].append((now, number))
            await asyncio.sleep(max(0.0, begun + PACE_S - time.monotonic()))

    def _rounds(self, text: str) -> Iterable[tuple[str, int]]:
        if self.kind == "task":
            status, closed = _STATUS.search(text), _CLOSED.search(text)
            number = min(int(status[1]), int(closed[1])) if status and closed else 0
            return [(self.path.rpartition("/")[2], number)]
        if self.kind in ("overview", "tasks"):
            return [(row[1], int(row[2])) for row in _ROW.finditer(text)]
        return []


def kinds(count: int) -> list[str]:
    """The mix, for so many pages."""
    found = [kind for kind, share in PAGES.items() for _ in range(round(count * share / sum(PAGES.values())))]
    return (found + ["task"] * count)[:count]


# --- the processes


@contextlib.asynccontextmanager
async def program(*words: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(*words, stdin=PIPE, stdout=PIPE, limit=2**22)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def told(process: Process) -> dict[str, Any]:
    """The next line of JSON that it says. Raises Wrong."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        while line := await process.stdout.readline():
            if line.startswith(b"{"):
                return dict(json.loads(line))
    raise Wrong("a process has ended too early: its log says why")


async def ask(process: Process, what: str) -> None:
    assert process.stdin is not None
    process.stdin.write(what.encode() + b"\n")
    await process.stdin.drain()


@contextlib.asynccontextmanager
async def nats_server(folder: Path) -> AsyncIterator[str]:
    ports = folder / "ports"
    ports.mkdir(parents=True)
    words = ("-a", "127.0.0.1", "-p", "-1", "-js", "-sd", str(folder), "-l", str(folder / "log"))
    words += ("--ports_file_dir", str(ports))
    async with program(str(Programs().nats_server()), *words):
        async with asyncio.timeout(PATIENCE_S):
            while not (found := [path for path in ports.iterdir() if path.read_text()]):
                await asyncio.sleep(0.05)
        yield json.loads(found[0].read_text())["nats"][0]


# --- measuring


@dataclass(frozen=True, slots=True)
class Part:
    """What was measured in one part. Delays in seconds, by the kind of the page."""

    delays: dict[str, list[float]]
    rounds: int
    cpu_share: float
    load_cpu_share: float
    pages_cpu_share: float
    rss_mb: float
    pss_mb: float
    lag_p99_ms: float
    lag_max_ms: float
    throughput: dict[str, float]
    reads_per_s: float
    reads_per_page_and_s: dict[str, float]
    read_p50_ms: float
    kb_per_page_and_s: float
    machine_load: float
    browser: list[float]


class Bench:
    def __init__(self, plan: Plan, portal: Process, load: Process, pages: Sequence[Page]) -> None:
        self._plan, self._portal, self._load, self._pages = plan, portal, load, pages
        self._asking = pages[0].http.another()
        self._writes: list[tuple[float, str, int]] = []
        self.window: Window | None = None

    async def follow(self) -> None:
        """What the load says that it has written."""
        while True:
            found = await told(self._load)
            if "round" in found:
                self._writes.append((found["at"], found["task"], found["round"]))

    async def part(self, pace: str) -> Part:
        """`pace`: what the load is told."""
        await ask(self._load, pace)
        await asyncio.sleep(self._plan.warm_up_s)
        await ask(self._portal, "begin")
        processes = [psutil.Process(pid) for pid in (self._portal.pid, self._load.pid, psutil.Process().pid)]
        bytes_read = sum(page.bytes_read for page in self._pages)
        reads = [len(page.reads) for page in self._pages]
        began, cpu = time.monotonic(), [_cpu_s(process) for process in processes]
        peak = 0.0
        while time.monotonic() < began + self._plan.seconds:
            await asyncio.sleep(1)
            peak = max(peak, processes[0].memory_full_info().pss)
        ended = time.monotonic()
        shares = [(_cpu_s(each) - before) / (ended - began) for each, before in zip(processes, cpu, strict=True)]
        bytes_read = sum(page.bytes_read for page in self._pages) - bytes_read
        took = sorted(read for page, before in zip(self._pages, reads, strict=True) for read in page.reads[before:])
        overview, _ = await self._asking.get("/api/v1/overview")
        await ask(self._portal, "end")
        lag = await told(self._portal)
        rounds = [write for write in self._writes if began <= write[0] < ended]
        delays = await self._delays(rounds)
        return Part(
            delays=delays,
            rounds=len(rounds),
            cpu_share=round(shares[0], 3),
            load_cpu_share=round(shares[1], 3),
            pages_cpu_share=round(shares[2], 3),
            rss_mb=round(processes[0].memory_info().rss / 1e6, 1),
            pss_mb=round(peak / 1e6, 1),
            lag_p99_ms=lag["p99_ms"],
            lag_max_ms=lag["max_ms"],
            throughput=json.loads(overview)["throughput"],
            reads_per_s=round(len(took) / (ended - began), 1),
            reads_per_page_and_s=self._reads(reads, ended - began),
            read_p50_ms=round(1000 * percentile(took, 0.5), 1) if took else 0.0,
            kb_per_page_and_s=round(bytes_read / 1e3 / len(self._pages) / (ended - began), 1),
            machine_load=round(psutil.getloadavg()[0], 2),
            browser=[] if self.window is None else await self.window.delays(rounds),
        )

    def _reads(self, before: Sequence[int], seconds: float) -> dict[str, float]:
        found: dict[str, list[float]] = defaultdict(list)
        for page, count in zip(self._pages, before, strict=True):
            found[page.kind].append((len(page.reads) - count) / seconds)
        return {kind: round(statistics.mean(each), 2) for kind, each in found.items()}

    async def _delays(self, rounds: Sequence[tuple[float, str, int]]) -> dict[str, list[float]]:
        """Raises Wrong: a page has never shown one."""
        found: dict[str, list[float]] = defaultdict(list)
        deadline = time.monotonic() + LATE_S
        for page in self._pages:
            for at, task, number in rounds:
                if task not in page.shown:
                    continue
                while page.shown[task][-1][1] < number:
                    if time.monotonic() > deadline:
                        raise Wrong(f"{page.path} shows {page.shown[task][-1]} of {task}, and not {number} of {at}")
                    await asyncio.sleep(0.1)
                first = next(when for when, shown in page.shown[task] if shown >= number)
                found[page.kind].append(max(0.0, first - at))
        return dict(found)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


# --- one real window


WATCH = """() => {
  window.shown = [];
  let last = "";
  const look = () => {
    const now = document.querySelector("dl.facts .fleeting")?.textContent ?? "";
    const row = document.querySelector(".round [data-state=closed]")?.closest(".round").id.slice(6) ?? "0";
    const number = Math.min(parseInt(now), parseInt(row));
    if (number !== last) window.shown.push([Date.now() / 1000, last = number]);
  };
  look();
  new MutationObserver(look).observe(document.getElementById("main"), {subtree: true, childList: true, characterData: true});
}"""


class Window:
    """Of a task, in a real browser."""

    TASK = "task0"

    def __init__(self, page: Any) -> None:
        self._page = page

    async def delays(self, rounds: Sequence[tuple[float, str, int]]) -> list[float]:
        skew = time.time() - time.monotonic()
        shown = [(at - skew, number) for at, number in await self._page.evaluate("window.shown")]
        wanted = [(at, number) for at, task, number in rounds if task == self.TASK]
        firsts = [(at, next((when for when, seen in shown if seen >= number), None)) for at, number in wanted]
        return [max(0.0, first - at) for at, first in firsts if first is not None]


@contextlib.asynccontextmanager
async def window(executable: str, link: str) -> AsyncIterator[Window | None]:
    if not executable:
        yield None
        return
    from playwright.async_api import async_playwright  # an extra

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = await browser.new_page()
        await page.goto(link)
        await page.wait_for_selector("#live")
        await page.goto(link.partition("/login")[0] + ADDRESSES["task"].format(0))
        await page.evaluate(WATCH)
        try:
            yield Window(page)
        finally:
            await browser.close()


# --- all of it


async def run(plan: Plan, folder: Path) -> dict[str, Any]:
    """Raises Wrong."""
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(nats_server(folder / "nats"))
        load = await stack.enter_async_context(program(sys.executable, str(SCRIPTS / "load.py"), url))
        await told(load)
        words = (sys.executable, str(SCRIPTS / "portal.py"), url, str(folder / "portal"))
        portal = await stack.enter_async_context(program(*words))
        served = await told(portal)
        token = Access(folder / "portal").create_token("bench", Role.VIEWER)
        port = int(served["url"].rpartition(":")[2])
        await _ready(port, token)
        numbers: Counter[str] = Counter()
        pages = []
        for kind in kinds(plan.pages):
            path = ADDRESSES[kind].format(numbers[kind])
            numbers[kind] += 1
            pages.append(Page(kind, path, Http(port, token), Http(port, token)))
        bench = Bench(plan, portal, load, pages)
        following = asyncio.create_task(bench.follow())
        await ask(load, "full")
        up = asyncio.Semaphore(8)
        opened = asyncio.gather(*(page.run(up) for page in pages))
        try:
            link = one_time_link(folder / "portal")
            bench.window = await stack.enter_async_context(window(plan.browser, link))
            measuring = asyncio.create_task(_parts(bench))
            await asyncio.wait({measuring, opened, following}, return_when=asyncio.FIRST_COMPLETED)
            for ended in (opened, following):
                if ended.done():
                    measuring.cancel()
                    ended.result()
            parts = await measuring
        finally:
            for task in (opened, following):
                task.cancel()
            await asyncio.gather(opened, following, return_exceptions=True)
            for page in pages:
                page.http.close()
                page.stream.close()
    return {
        "plan": asdict(plan),
        "machine": {"cores": psutil.cpu_count(), "python": platform.python_version()},
        "pages": dict(Counter(kinds(plan.pages))),
        "parts": {name: _told(part) for name, part in parts.items()},
    }


async def _ready(port: int, token: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            http = Http(port, token)
            with contextlib.suppress(Wrong):
                await http.get("/readyz")
                return
            http.close()
            await asyncio.sleep(0.2)


async def _parts(bench: Bench) -> dict[str, Part]:
    return {"load": await bench.part("full"), "calm": await bench.part("calm")}


def _told(part: Part) -> dict[str, Any]:
    """For JSON: of the delays only what counts."""
    everything = [delay for delays in part.delays.values() for delay in delays]
    by_kind = {kind: _figures(delays) for kind, delays in part.delays.items()}
    return {**asdict(part), "delays": {"all": _figures(everything), **by_kind}, "browser": _figures(part.browser)}


def _figures(delays: Iterable[float]) -> dict[str, float]:
    found = sorted(delays)
    if not found:
        return {}
    return {
        "count": len(found),
        "median_s": round(statistics.median(found), 3),
        "p99_s": round(percentile(found, 0.99), 3),
        "worst_s": round(found[-1], 3),
    }


def table(document: dict[str, Any]) -> str:
    load, calm = document["parts"]["load"], document["parts"]["calm"]

    def row(what: str, aim: str, *names: str, unit: str = "") -> str:
        cells = []
        for part in (load, calm):
            found = part
            for name in names:
                found = found.get(name, {})
            cells.append(f"{found}{unit}" if found != {} else "")
        return f"| {what} | {aim} | {cells[0]} | {cells[1]} |"

    rows = ["| figure | aim | with the load | calm |", "| --- | --- | ---: | ---: |"]
    for kind, what in (("all", "all pages"), ("overview", "overview"), ("tasks", "list of tasks"), ("task", "a task")):
        for figure, name, aim in (("median", "median_s", "0.5 s"), ("p99", "p99_s", "1 s"), ("worst", "worst_s", "")):
            rows.append(row(f"write to page, {what}, {figure}", aim, "delays", kind, name, unit=" s"))
    if load["browser"]:
        for figure, name in (("median", "median_s"), ("worst", "worst_s")):
            rows.append(row(f"write to text in Chromium, a task, {figure}", "1 s", "browser", name, unit=" s"))
    rows += [
        row("portal's memory, peak (PSS)", "300 MB", "pss_mb", unit=" MB"),
        row("portal's CPU, of one core", "", "cpu_share"),
        row("portal's loop is late, p99", "100 ms", "lag_p99_ms", unit=" ms"),
        row("portal's loop is late, most", "", "lag_max_ms", unit=" ms"),
        row("pages read per second", "", "reads_per_s"),
        row("reading a page, median", "", "read_p50_ms", unit=" ms"),
        row("to a page per second", "", "kb_per_page_and_s", unit=" kB"),
        row("CPU of the load, of one core", "", "load_cpu_share"),
        row("CPU of the pages, of one core", "", "pages_cpu_share"),
        row("load average", "", "machine_load"),
    ]
    plan, machine = document["plan"], document["machine"]
    rows.append("")
    rows.append(
        f"{plan['pages']} pages, {plan['seconds']:g} s each after {plan['warm_up_s']:g} s; {load['rounds']} and "
        f"{calm['rounds']} rounds; {machine['cores']} cores, Python {machine['python']}."
    )
    return "\n".join(rows)


def main() -> int:
    asked_for = argparse.ArgumentParser(description="how fast the portal shows what happens")
    asked_for.add_argument("--seconds", type=float, default=60.0, help="with the load, and as long without")
    asked_for.add_argument("--warm-up", type=float, default=15.0)
    asked_for.add_argument("--pages", type=int, default=50)
    asked_for.add_argument("--browser", default="", help="program of a Chromium that opens a page too")
    asked_for.add_argument("--json", type=Path, help="also write all figures to this file")
    options = asked_for.parse_args()
    plan = Plan(options.seconds, options.warm_up, options.pages, options.browser)
    with tempfile.TemporaryDirectory(prefix="edgeai-benchmark-") as folder:
        try:
            document = asyncio.run(run(plan, Path(folder)))
        except Wrong as error:
            print(error, file=sys.stderr)
            return 1
    print(table(document))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
