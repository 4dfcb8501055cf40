"""What a daemon says of itself before and when it runs, and how everything it leaves is stopped."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.cli.daemons.life import Announcement
from edgeai.cli.outcome import exit_code_of
from edgeai.cli.stopping import stop_all
from edgeai.errors import NotFound

HOLD = "import sys, time; from pathlib import Path; from edgeai.cli.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1]), sys.argv[2]): print('held', flush=True); time.sleep(60)\n"


@pytest.mark.parametrize(("content", "code"), [(None, 3), ("{}", 1)], ids=["missing", "damaged"])
@pytest.mark.parametrize("command", ["edge", "bridge"])
def test_a_bad_credentials_file_is_refused_in_one_line_before_anything_starts(tmp_path, content, code, command):
    file = tmp_path / "edge1.json"
    if content is not None:
        file.write_text(content)
    given = {
        "edge": f"--cloud nats://127.0.0.1:1 --credentials {file} --state-dir {tmp_path}/state",
        "bridge": f"--mqtt mqtt://127.0.0.1:1 --nats nats://127.0.0.1:1 --mqtt-credentials {file} --nats-credentials {file}",
    }
    argv = [sys.executable, "-m", "edgeai", command, "--node", "edge1", *given[command].split()]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (code, "")
    [line] = done.stderr.splitlines()
    assert str(file) in line
    assert not (tmp_path / "state").exists()


def test_a_daemon_is_ready_once_all_its_parts_have_begun(capsys):
    ready = Announcement("coordinator", "controller", nats="nats://x", state_dir="/d")
    ready.begun("controller")
    ready.begun("controller")
    assert capsys.readouterr().out == ""
    ready.begun("coordinator")
    ready.begun("coordinator")
    assert capsys.readouterr().out == "ready nats=nats://x state_dir=/d\n"


async def test_a_part_has_begun_when_its_broker_answers(capsys):
    ready = Announcement("controller", node="edge1")
    async with MemoryBus(MemoryBroker()) as bus, ready.when_connected("controller", bus):
        while not (said := capsys.readouterr().out):
            await asyncio.sleep(0)
    assert said == "ready node=edge1\n"


# --- edgeai stop


def test_a_daemon_is_stopped_by_its_lock(tmp_path, capsys):
    argv = [sys.executable, "-c", HOLD, str(tmp_path / "inner"), "edge"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "held\n"
        assert exit_code_of(lambda: stop_all(tmp_path)) == 0
        assert daemon.wait(10) == -signal.SIGTERM
    assert capsys.readouterr().out == f"edge (process {daemon.pid}) stopped\n"


def test_nothing_to_stop_is_a_notice(tmp_path, capsys):
    stop_all(tmp_path)
    assert capsys.readouterr().err == f"edgeai: nothing runs on {tmp_path}\n"


def test_a_folder_that_is_not_there_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        stop_all(tmp_path / "nowhere")


def test_a_lock_that_was_left_behind_stops_nobody(tmp_path, capsys):
    (tmp_path / "edge.lock").write_text(f"{os.getpid()}\n")
    stop_all(tmp_path)
    assert "nothing runs" in capsys.readouterr().err
