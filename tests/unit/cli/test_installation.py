"""How light the command is, how it ends when nobody reads, and what `doctor` makes of a machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeai.bus.embedded import Programs
from edgeai.cli import doctor
from edgeai.cli.outcome import exit_code_of
from edgeai.cli.reference import markdown
from edgeai.errors import BinaryMissing, ManifestError, Refused

HEAVY = {"numpy", "tensorflow", "keras", "nats", "aiomqtt", "rich", "yaml", "structlog"}


def modules_after(*arguments: str) -> set[str]:
    """The top-level modules that a run of the command has loaded."""
    program = (
        "import sys, atexit\n"
        f"sys.argv = ['edgeai', *{list(arguments)!r}]\n"
        "atexit.register(lambda: print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr))\n"
        "from edgeai.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["apply", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_nothing_heavy(arguments):
    assert modules_after(*arguments) & HEAVY == set()


def test_a_reader_that_goes_away_is_no_reason_for_a_word(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "edgeai", "schema", "json"],
            stdout=nobody,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    assert done.stderr == b""
    assert done.returncode == 1


def test_several_errors_of_ours_are_told_by_the_first(capsys):
    def fail() -> None:
        raise BaseExceptionGroup("several", [ExceptionGroup("inner", [Refused("no")])])

    assert exit_code_of(fail) == 4
    assert capsys.readouterr().err == "edgeai: no\n"


def test_an_error_that_nobody_expected_is_not_hidden():
    def fail() -> None:
        raise BaseExceptionGroup("several", [Refused("no"), ZeroDivisionError()])

    with pytest.raises(BaseExceptionGroup):
        exit_code_of(fail)


def test_ten_errors_of_a_manifest_are_told_line_by_line_and_the_others_counted(capsys):
    def fail() -> None:
        raise ManifestError.of(ManifestError("wrong", file="task.yaml", line=line) for line in range(1, 13))

    assert exit_code_of(fail) == 4
    assert capsys.readouterr().err.splitlines() == [
        "edgeai: task.yaml:1: wrong (and 11 more)",
        *(f"  task.yaml:{line}: wrong" for line in range(2, 11)),
        "  (and 2 more)",
    ]


def test_an_error_of_several_lines_is_told_on_one(capsys):
    def fail() -> None:
        raise Refused("one\ntwo")

    exit_code_of(fail)
    assert capsys.readouterr().err == "edgeai: one two\n"


def test_the_page_of_commands_is_what_the_code_says():
    assert (Path(__file__).parents[3] / "docs" / "cli.md").read_text() == markdown()


def missing(name: str):
    def find(_: Programs) -> Path:
        raise BinaryMissing(name, f"install {name}")

    return find


def test_doctor_ends_with_failure_when_something_required_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("EDGEAI_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(Programs, "nats_server", missing("nats-server"))
    assert not doctor.examine()
    assert "!!  nats-server   nats-server is not installed; install nats-server\n" in capsys.readouterr().out


def test_doctor_does_not_mind_what_is_optional(monkeypatch):
    monkeypatch.setattr(Programs, "mosquitto", missing("mosquitto"))
    assert doctor.mosquitto().verdict is doctor.Verdict.OPTIONAL


def test_doctor_says_where_the_context_leads_nowhere(monkeypatch, tmp_path):
    path = tmp_path / "context.json"
    path.write_text("{}")
    monkeypatch.setenv("EDGEAI_CONTEXT", str(path))
    finding = doctor.context()
    assert finding.verdict is doctor.Verdict.WRONG
    assert str(path) in finding.says


def test_doctor_does_not_mind_that_there_is_no_context(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEAI_CONTEXT", str(tmp_path / "context.json"))
    assert doctor.context().verdict is doctor.Verdict.OPTIONAL


def test_doctor_wants_room_on_the_disk(monkeypatch):
    monkeypatch.setattr(doctor, "_FREE_GB", 1e9)
    assert doctor.disk().verdict is doctor.Verdict.WRONG
