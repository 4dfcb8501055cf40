"""Whose cloud the command line finds when several run, and where it is sent when it finds none."""

import os

import pytest

from edgeai.cli.contexts import led_on, own_context_file, take_context
from edgeai.cli.lock import holder_of, locked
from edgeai.cli.up import how_to_find_it
from edgeai.errors import NotFound
from edgeai.settings import Context, context_path, read_context, remove_context, write_context


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEAI_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def context(folder) -> Context:
    return Context(f"nats://{folder.name}", "operator.json", str(folder))


def test_a_lock_names_its_holder_while_it_is_held(tmp_path):
    with locked(tmp_path, "up"):
        assert holder_of(tmp_path, "up") == os.getpid()
    assert holder_of(tmp_path, "up") is None


def test_looking_at_a_lock_takes_it_from_nobody(tmp_path):
    holder_of(tmp_path, "up")
    with locked(tmp_path, "up"):
        holder_of(tmp_path, "up")
        assert holder_of(tmp_path, "up") == os.getpid()


def test_the_first_playground_takes_the_context(tmp_path):
    assert take_context(context(tmp_path / "first")) == ""
    assert read_context() == context(tmp_path / "first")


@pytest.mark.parametrize("what", ["up", "cloud"])
def test_a_second_playground_leaves_the_context_to_the_one_that_runs(tmp_path, what):
    first, second = context(tmp_path / "first"), context(tmp_path / "second")
    write_context(first)
    with locked(tmp_path / "first", what):
        assert take_context(second) == f"the cloud of `edgeai {what}` in {first.state_dir} (process {os.getpid()})"
        remove_context(second)
    assert read_context() == first


def test_a_second_playground_says_how_it_is_found(tmp_path):
    said = how_to_find_it(context(tmp_path / "second"), "the cloud of another")
    assert f"EDGEAI_CONTEXT={tmp_path}/second/cloud/context.json" in said


def test_the_context_of_a_playground_that_has_died_is_taken_over(tmp_path):
    write_context(context(tmp_path / "first"))
    assert take_context(context(tmp_path / "second")) == ""
    assert read_context() == context(tmp_path / "second")


def test_a_damaged_context_is_taken_over(tmp_path):
    context_path().write_text("{")
    assert take_context(context(tmp_path / "first")) == ""
    assert read_context() == context(tmp_path / "first")


def missing() -> NotFound:
    with pytest.raises(NotFound) as error:
        read_context()
    return error.value


def test_without_a_context_a_playground_that_runs_is_named(tmp_path):
    playground = tmp_path / "data" / "edgeai" / "playground"
    write_context(context(playground), own_context_file(playground))
    with locked(playground, "up"):
        assert f"EDGEAI_CONTEXT={playground}/cloud/context.json" in str(led_on(missing()))


def test_a_playground_that_does_not_run_is_not_named(tmp_path):
    playground = tmp_path / "data" / "edgeai" / "playground"
    write_context(context(playground), own_context_file(playground))
    error = missing()
    assert led_on(error) is error
