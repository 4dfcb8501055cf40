"""The contract between a worker and whoever starts it, and the pages that print it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgeai
from edgeai.bus.mqtt import MqttBus
from edgeai.bus.nats import NatsBus
from edgeai.errors import BusError, DamagedFile, LaunchError, NotFound
from edgeai.launcher.slots import SessionFile, SlotFile
from edgeai.worker.environment import VARIABLES, WorkerEnvironment
from scripted_aggregation import environment_of, slot_of

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "worker-environment.md").read_text()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return environment_of(slot_of(tmp_path / "slot", "edge1"), "mqtt://127.0.0.1:1883")


def test_the_environment_says_who_a_worker_is(environ, tmp_path):
    found = WorkerEnvironment.read(environ)
    assert (found.source, found.slot.path) == ("edge1/digits-0123abcd/work0", tmp_path / "slot")


@pytest.mark.parametrize("missing", VARIABLES)
def test_a_variable_that_is_not_set_is_named(environ, missing):
    del environ[missing]
    with pytest.raises(LaunchError, match=rf"to be started by an edgeai controller: {missing} is not set"):
        WorkerEnvironment.read(environ)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("mqtt://h:1", MqttBus),
        ("mqtt+unix:///run/mqtt.socket", MqttBus),
        ("nats://h:4222", NatsBus),
        ("nats+unix:///run/nats.socket", NatsBus),
    ],
)
def test_the_scheme_of_the_url_chooses_the_bus(environ, url, kind):
    assert isinstance(WorkerEnvironment.read({**environ, "EDGEAI_BUS": url}).open_bus(), kind)


@pytest.mark.parametrize("url", ["http://h:1", "h:1883", "mqtts://h"])
def test_another_scheme_is_refused_with_what_is_possible(environ, url):
    with pytest.raises(LaunchError, match="the scheme must be mqtt or nats"):
        WorkerEnvironment.read({**environ, "EDGEAI_BUS": url}).open_bus()


def test_a_url_without_a_host_is_refused(environ):
    with pytest.raises(BusError, match="is not an MQTT address"):
        WorkerEnvironment.read({**environ, "EDGEAI_BUS": "mqtt://"}).open_bus()


def test_a_missing_credentials_file_is_named(environ, tmp_path):
    with pytest.raises(NotFound, match=r"none\.json"):
        WorkerEnvironment.read({**environ, "EDGEAI_CREDENTIALS_FILE": str(tmp_path / "none.json")}).open_bus()


def test_a_damaged_credentials_file_shows_nothing_of_its_content(environ, tmp_path):
    (tmp_path / "bad.json").write_text('{"password": "canary"')
    with pytest.raises(DamagedFile) as caught:
        WorkerEnvironment.read({**environ, "EDGEAI_CREDENTIALS_FILE": str(tmp_path / "bad.json")}).open_bus()
    assert "canary" not in str(caught.value)


# --- pages


def test_the_page_lists_the_variables_of_the_code_in_order():
    assert tuple(re.findall(r"^\| `(EDGEAI_[A-Z_]+)` \|", PAGE, re.MULTILINE)) == VARIABLES


def test_the_docstring_lists_the_same_variables():
    from edgeai.worker import environment

    assert tuple(re.findall(r"^\| (EDGEAI_[A-Z_]+) \|", environment.__doc__ or "", re.MULTILINE)) == VARIABLES


def test_the_page_lists_every_path_of_the_slot_directory(environ):
    slot = WorkerEnvironment.read(environ).slot
    paths = (slot.script, slot.updates, slot.output, slot.log, slot.state, slot.parts, slot.model("0").parent)
    assert [path.name for path in paths if f"`{path.name}" not in PAGE] == []


@pytest.mark.parametrize("file", [SlotFile, SessionFile])
def test_the_page_lists_every_field_of_the_two_small_files(file):
    assert [name for name in file.__dataclass_fields__ if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("worker", ["federated-numpy", "federated-tensorflow"])
def test_the_lib_page_prints_the_example_as_it_is(worker):
    assert (
        f"```python\n{(ROOT / 'workers' / worker / 'main.py').read_text()}```" in (ROOT / "docs" / "lib.md").read_text()
    )


# --- the public names


def test_the_public_names_are_these():
    assert edgeai.__all__ == ["connect", "connect_edge", "errors", "join", "join_sync", "keras", "label_metrics"]


@pytest.mark.parametrize("name", edgeai.__all__)
def test_every_public_name_is_there(name):
    assert getattr(edgeai, name) is not None


def test_every_public_name_is_listed_for_people_who_explore():
    assert set(edgeai.__all__) <= set(dir(edgeai))


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'joint'"):
        edgeai.joint  # noqa: B018


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import edgeai", "numpy tensorflow keras aiomqtt nats pydantic structlog"),
        ("import edgeai; edgeai.join", "tensorflow keras aiomqtt nats"),
        ("import edgeai; edgeai.keras.train", "tensorflow keras aiomqtt nats"),
    ],
)
def test_importing_loads_nothing_that_is_not_used_yet(statement, absent):
    program = f"import sys; {statement}; print(*(name for name in {absent.split()} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
