"""Ids of spans, W3C's traceparent, and that nothing is paid for traces that nobody wants."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from collector import Collector, collecting
from edgeai import tracing
from edgeai.cli.daemons.controller import worker_env
from edgeai.store.identity import new_uid
from edgeai.tracing import Context, Part, child_of, parent_of, parse, span_of, task_span

UID, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PART = Part("edgeai-test", "edge1")


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """This process sends to a collector, as long as the test lasts."""
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        tracing.start("edgeai-process")
        yield collector
        tracing.stop()


# --- ids


def test_the_trace_of_a_task_is_its_uid():
    assert span_of(UID, "round", 3).trace_id == UID


def test_a_new_uid_is_a_valid_trace_id():
    uid = new_uid()
    assert parse(str(span_of(uid))) == span_of(uid)


def test_a_span_has_the_same_id_in_every_process():
    assert span_of(UID, "round", 3).span_id == "37bf87c30c1504fb"
    assert span_of(UID).span_id == "9489d5480f7690eb"


@given(st.lists(st.sampled_from(["task", "round", "1", "2", "train", "work0"]), max_size=5))
def test_the_path_is_all_that_tells_spans_of_a_task_apart(path):
    assert span_of(UID, *path) == span_of(UID, *path)
    assert span_of(UID, *path) != span_of(UID, *path, "more")
    assert span_of(UID, *path) != span_of("1" * 32, *path)


# --- traceparent


@given(st.from_regex(r"[0-9a-f]{32}", fullmatch=True), st.from_regex(r"[0-9a-f]{16}", fullmatch=True), st.booleans())
def test_what_is_written_is_read_again(trace_id, span_id, sampled):
    context = Context(trace_id, span_id, sampled)
    known = parse(str(context))
    assert known == (context if int(trace_id, 16) and int(span_id, 16) else None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"00-{UID}-{SPAN}",
        f"00-{UID}-{SPAN}-1",
        f"00-{UID}-{SPAN}-01-more",
        f"ff-{UID}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{UID}-{'0' * 16}-01",
        f"00-{UID.upper()}-{SPAN}-01",
        f"00-{UID}-{SPAN}-0x",
        f" 00-{UID}-{SPAN}-01",
        f"00-{UID}-{SPAN}-01\n",
        f"00-{chr(0x660) * 32}-{SPAN}-01",
        f"cc-{UID}-{SPAN}-01-" + "x" * 10_000,
        "\x00" * 55,
    ],
)
def test_what_is_no_traceparent_is_ignored(text):
    assert parse(text) is None


@given(st.text())
def test_no_text_makes_it_raise(text):
    parse(text)


def test_a_later_version_may_say_more():
    assert parse(f"cc-{UID}-{SPAN}-01-what-comes-later") == Context(UID, SPAN)


def test_only_the_flag_of_sampling_counts():
    assert parse(f"00-{UID}-{SPAN}-02") == Context(UID, SPAN, sampled=False)
    assert parse(f"00-{UID}-{SPAN}-03") == Context(UID, SPAN)


def test_a_parent_comes_from_the_message():
    assert parent_of(f"00-{UID}-{SPAN}-01", UID, "task") == Context(UID, SPAN)


@pytest.mark.parametrize("trace", ["", "nonsense", f"00-{'1' * 32}-{SPAN}-01", f"00-{UID}-{SPAN}-00"])
def test_a_message_without_a_trace_of_this_task_leaves_what_is_derived(trace):
    assert parent_of(trace, UID, "task") == task_span(UID)


def test_a_child_of_somebody_elses_span_stays_in_its_trace():
    caller = Context("1" * 32, SPAN)
    child = child_of(caller, "infer", "a")
    assert (child.trace_id, child.sampled) == (caller.trace_id, True)
    assert child != child_of(caller, "infer", "b") != caller


# --- what it costs


def test_without_the_variables_nothing_of_opentelemetry_is_imported():
    code = """
import sys
from edgeai import client, tracing
from edgeai.controller import service
from edgeai.coordinator import service
from edgeai.worker import aggregation, task
tracing.start("edgeai-test")
tracing.Part("x").record("task", tracing.task_span("1" * 32), None, 0.0)
assert tracing.flush(0)
print([name for name in sys.modules if name.startswith("opentelemetry")], tracing.recording())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[] False\n"


def test_without_the_variables_nothing_is_kept():
    tracing.start("edgeai-test", {})
    here = task_span(UID)
    PART.record("task", here, None, 0.0)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(1000):
        PART.record("task", here, None, 0.0)
    assert len(gc.get_objects()) - before < 100


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_traces_are_not_wanted(variables):
    assert not tracing.is_wanted(variables)


@pytest.mark.parametrize("name", tracing.ENDPOINTS)
def test_either_variable_asks_for_traces(name):
    assert tracing.is_wanted({name: "http://127.0.0.1:4318"})


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracing, "_is_installed", lambda: False)
    with capture_logs() as lines:
        for _ in range(2):
            tracing.start("edgeai-test", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
    tracing.stop()
    [line] = lines
    assert line["log_level"] == "warning"
    assert "with the extra `tracing`" in line["reason"]
    assert not tracing.recording()


def test_without_an_exporter_the_context_that_came_in_is_passed_on():
    came, mine = Context(UID, SPAN), task_span(UID)
    assert tracing.passed_on(mine, came) == str(came)


# --- what is sent


def test_a_span_arrives_with_its_ids_times_and_attributes(recording: Collector):
    PART.record("round", span_of(UID, "round", 1), task_span(UID), 10.0, {"round": 1, "empty": ""}, ended_s=12.5)
    [span] = recording.until(UID, bool)
    assert (span.trace, span.id, span.parent) == (UID, span_of(UID, "round", 1).span_id, task_span(UID).span_id)
    assert (span.name, span.service, span.node) == ("round", "edgeai-test", "edge1")
    assert (span.began_s, span.ended_s, span.error, span.about) == (10.0, 12.5, "", {"round": 1})


def test_a_root_has_no_parent_and_a_failure_has_its_reason(recording: Collector):
    Part().record("apply", span_of(UID), None, time.time(), error="no such node\nand more")
    [span] = recording.until(UID, bool)
    assert (span.parent, span.service, span.error) == ("", "edgeai-process", "no such node")


def test_the_parts_of_a_process_are_told_apart(recording: Collector):
    for service in ("edgeai-coordinator", "edgeai-controller"):
        Part(service, "cloud").record(service, span_of(UID, service), None, 1.0)
    spans = recording.until(UID, lambda spans: len(spans) == 2)
    assert [(span.service, span.name) for span in spans] == [(span.name, span.name) for span in spans]


@pytest.mark.parametrize("here", [Context(UID, SPAN, sampled=False), Context("not a uid", SPAN)])
def test_what_is_not_sampled_or_has_no_trace_is_not_sent(recording: Collector, here: Context):
    PART.record("infer", here, None, 1.0)
    PART.record("last", span_of(UID, "last"), None, 1.0)
    assert [span.name for span in recording.until(UID, bool)] == ["last"]


def test_flush_returns_when_all_is_sent(recording: Collector):
    PART.record("task", task_span(UID), None, 1.0)
    assert tracing.flush(10)
    assert [span.name for span in recording.of(UID)] == ["task"]


def test_a_collector_that_hangs_holds_up_neither_record_nor_flush(recording: Collector):
    recording.silent.set()
    for number in range(10_000):
        PART.record("round", span_of(UID, "round", number), None, 1.0)
    assert not tracing.flush(0.1)


def test_a_collector_that_is_away_is_told_of_once_and_when_it_is_back(recording: Collector):
    recording.answer = 400
    with capture_logs() as lines:
        for _ in range(3):
            PART.record("task", task_span(UID), None, 1.0)
            assert tracing.flush(10)
        recording.answer = 200
        PART.record("task", task_span(UID), None, 1.0)
        assert tracing.flush(10)
    assert [line["event"] for line in lines] == ["traces_not_sent", "traces_sent_again"]
    assert lines[0]["reason"]


def test_what_the_exporter_says_of_a_collector_that_is_away_is_one_line():
    code = """
from edgeai import tracing
tracing.start("edgeai-test")
for _ in range(3):
    tracing.Part("x").record("task", tracing.task_span("1" * 32), None, 0.0)
    tracing.flush(30)
"""
    away = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **away}, capture_output=True, text=True, check=True
    )
    [line] = (done.stdout + done.stderr).splitlines()
    assert "traces_not_sent" in line


def test_wrong_variables_of_opentelemetry_end_nothing():
    code = """
from edgeai import tracing
tracing.start("edgeai-test")
tracing.Part("x").record("task", tracing.task_span("1" * 32), None, 0.0)
print(tracing.flush(30))
"""
    wrong = {"OTEL_EXPORTER_OTLP_ENDPOINT": "no address", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **wrong}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "True"
    assert "traces_not_" in done.stdout + done.stderr


def test_a_short_process_sends_what_it_has_recorded():
    code = f"""
from edgeai import tracing
tracing.start("edgeai-test")
tracing.Part().record("apply", tracing.span_of({UID!r}), None, 1.0)
tracing.flush()
"""
    with collecting() as collector:
        environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        assert [span.name for span in collector.of(UID)] == ["apply"]


# --- workers


def test_workers_are_told_where_to_send_traces_and_no_password():
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "authorization=secret",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment=lab",
        "PATH": "/bin",
    }
    found = worker_env(environment)
    assert found == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment=lab",
    }
    assert "secret" not in json.dumps(found)
