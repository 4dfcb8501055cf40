"""What a hostile worker script gains: nothing. Each probe runs in a container as the launcher makes it by default.

Probes that do not disturb each other share a container, each as a process of its own.
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from edgeai.launcher.base import LOG_PART_BYTES, MIB, ExitReason, Mount

pytestmark = pytest.mark.containers

LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
CALL = (
    LIBC
    + "if libc.syscall({number}, {arguments}) < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))"
)
MOUNT = LIBC + "if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None): raise OSError(ctypes.get_errno(), 'mount')"

# Each must be refused by the system.
FORBIDDEN = {
    "write into the root": "open('/etc/probe', 'w')",
    "write into the image's packages": "import json; open(json.__file__, 'a')",
    "write beside the slot": "open('/edgeai/probe', 'w')",
    "write a kernel setting": "open('/proc/sys/vm/drop_caches', 'w')",
    "trigger the kernel": "open('/proc/sysrq-trigger', 'w')",
    "name a core dump handler": "open('/proc/sys/kernel/core_pattern', 'w')",
    "raise the own memory limit": "import glob; open(glob.glob('/sys/fs/cgroup/memory*/memory.limit_in_bytes')[0], 'w')"
    " if glob.glob('/sys/fs/cgroup/memory*/memory.limit_in_bytes') else open('/sys/fs/cgroup/memory.max', 'w')",
    "escape by a release agent": "import os; os.mkdir('/sys/fs/cgroup/probe')",
    "read the kernel's memory": "open('/proc/kcore', 'rb').read(1) or open('/dev/mem')",
    "read the kernel's log": "open('/dev/kmsg', 'rb')",
    "make a device": "import os, stat; os.mknod('disk', stat.S_IFBLK | 0o600, os.makedev(254, 0))",
    "become root": "import os; os.setuid(0)",
    "join a group": "import os; os.setgroups([0])",
    "give a file away": "import os; open('mine', 'w'); os.chown('mine', 0, 0)",
    "mount": MOUNT,
    "change the root": "import os; os.chroot('/tmp')",
    "make a user namespace": CALL.format(number=272, arguments="0x10000000"),
    "make a mount namespace": CALL.format(number=272, arguments="0x00020000"),
    "load a module": CALL.format(number=175, arguments="0, 0, 0"),
    "load a kernel": CALL.format(number=246, arguments="0, 0, 0, 0"),
    "restart the machine": CALL.format(number=169, arguments="0xfee1dead, 672274793, 0x1234567, 0"),
    "load a filter program": CALL.format(number=321, arguments="0, 0, 0"),
    "use the kernel's keys": CALL.format(number=250, arguments="0, -3, 0, 0, 0"),
    "measure other processes": CALL.format(number=298, arguments="0, -1, 0, -1, 0"),
    "set the clock": "import time; time.clock_settime(time.CLOCK_REALTIME, 0)",
    "rename the machine": "import socket; socket.sethostname('probe')",
    "send raw packets": "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
    "read packets": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "reach another machine": "import socket; socket.create_connection(('192.0.2.1', 80), 2)",
    "ask for a name": "import socket; socket.getaddrinfo('example.invalid', 80)",
    "take precedence": "import os; os.nice(-5)",
    "survive a lack of memory": "open('/proc/self/oom_score_adj', 'wb', 0).write(b'-1000')",
    "raise the own file size": "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))",
}


def attempt(script: str) -> str:
    return f"""
import sys
try:
    exec({script!r})
except (OSError, ValueError) as error:
    print("refused:", type(error).__name__, error)
else:
    print("GAINED")
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def said(run_each) -> dict[str, str]:
    """What came of everything that is forbidden."""
    return await run_each({name: attempt(script) for name, script in FORBIDDEN.items()})


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_worker_cannot(said: dict[str, str], name: str):
    assert said[name].startswith("refused: ")


async def test_a_worker_sees_its_own_slot_only(tmp_path, run):
    (tmp_path / "neighbour").mkdir()
    (tmp_path / "neighbour/secret").write_text("secret")
    script = f"import os; print(os.listdir('/edgeai'), os.path.exists({str(tmp_path)!r}), os.listdir('..'))"

    assert (await run(script)).log == "['slot'] False ['slot']\n"


async def test_a_worker_finds_no_secret_of_this_machine(tmp_path, run):
    (tmp_path / "canary").write_text("canary-5b1f")
    script = f"""
import os
for root in ("/proc/1/root", "/proc/self/root", "/proc/1/cwd/../../../.."):
    try:
        print(open(root + {str(tmp_path / "canary")!r}).read())
    except OSError as error:
        print("refused")
"""
    assert (await run(script)).log == "refused\n" * 3


async def test_a_worker_finds_no_socket_of_the_engine(run):
    script = """
import os, stat
found = []
for folder, _, names in os.walk("/"):
    if folder.startswith(("/proc", "/sys")):
        continue
    for name in names:
        try:
            if stat.S_ISSOCK(os.lstat(os.path.join(folder, name)).st_mode):
                found.append(os.path.join(folder, name))
        except OSError:
            pass
print(found)
"""
    assert (await run(script)).log == "[]\n"


async def test_a_worker_finds_no_disk(run):
    script = "import os, stat; print([n for n in os.listdir('/dev') if stat.S_ISBLK(os.lstat('/dev/' + n).st_mode)])"

    assert (await run(script)).log == "[]\n"


async def test_a_worker_has_no_privilege(run):
    script = """
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print({name: status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")}, status["Uid"].split())
"""
    none = "0" * 16
    wanted = {"CapEff": none, "CapPrm": none, "CapBnd": none, "CapAmb": none, "NoNewPrivs": "1", "Seccomp": "2"}

    assert (await run(script)).log == f"{wanted} {['10001'] * 4}\n"


async def test_a_setuid_program_gives_a_worker_nothing(run):
    script = """
import os, subprocess
ended = subprocess.run(["/usr/bin/su", "root", "-c", "id"], capture_output=True)
print(os.stat("/usr/bin/su").st_mode & 0o4000 != 0, ended.stdout)
"""
    assert (await run(script)).log == "True b''\n"


async def test_a_worker_sees_its_own_processes_only(run):
    script = """
import os
print(sorted(open(f"/proc/{pid}/comm").read().strip() for pid in os.listdir("/proc") if pid.isdigit()))
"""
    assert (await run(script)).log == "['docker-init', 'python']\n"


async def test_a_worker_cannot_signal_a_process_of_this_machine(run):
    assert (await run(attempt(f"import os; os.kill({os.getpid()}, 0)"))).log.startswith("refused: ProcessLookupError")


async def test_a_worker_has_no_network_but_its_own_loopback(run):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        script = (
            "print([name for _, name in __import__('socket').if_nameindex() if name != 'lo' and 'tunl' not in name])\n"
        )
        script += attempt(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)")

        log = (await run(script)).log

    assert log.splitlines()[0] == "[]"
    assert log.splitlines()[1].startswith("refused: ")


async def test_a_worker_cannot_reach_abstract_sockets_of_this_machine(run):
    name = f"edgeai-probe-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        script = attempt(f"import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}')")

        assert (await run(script)).log.startswith("refused: ")


async def test_a_worker_gets_no_variable_that_it_was_not_given(run, monkeypatch):
    monkeypatch.setenv("EDGEAI_CANARY_SECRET", "s3cret")

    log = (await run("import os; print(sorted(os.environ))")).log

    assert "CANARY" not in log


PLACES = ("data", "script", "bus")
CHANGES = {
    "append": "open('{file}', 'a')",
    "remove": "import os; os.unlink('{file}')",
    "open up": "import os; os.chmod('{file}', 0o777)",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mounted(tmp_path_factory: pytest.TempPathFactory, run_each) -> tuple[Path, dict[str, str]]:
    """What is mounted at each place, by its name, and what came of every try to change it."""
    folder = tmp_path_factory.mktemp("mounted")
    for place in PLACES:
        (folder / place).mkdir(mode=0o777)
        (folder / place / "file").write_text("kept")
        (folder / place / "file").chmod(0o666)
    tries = {
        f"{change} {place}": attempt(script.format(file=f"/edgeai/{place}/file"))
        for place in PLACES
        for change, script in CHANGES.items()
    }
    return folder, await run_each(tries, mounts=[Mount(folder / place, f"/edgeai/{place}") for place in PLACES])


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", PLACES)
def test_a_worker_cannot_change_what_is_mounted_to_be_read(mounted: tuple[Path, dict[str, str]], place, change):
    folder, said = mounted

    assert said[f"{change} {place}"].startswith("refused: ")
    assert (folder / place / "file").read_text() == "kept"


async def test_a_worker_may_read_the_file_that_is_its_dataset(tmp_path, run):
    (tmp_path / "digits.csv").write_text("1,2,3")
    (tmp_path / "other.csv").write_text("secret")
    mount = Mount(tmp_path / "digits.csv", "/edgeai/data/digits.csv")

    outcome = await run(
        "import os; print(os.listdir('/edgeai/data'), open('/edgeai/data/digits.csv').read())", mounts=[mount]
    )

    assert outcome.log == "['digits.csv'] 1,2,3\n"


REMEMBERED = {
    "rename": "import os; os.rename('.container', 'mine')",
    "remove": "import os; os.rmdir('.container')",
    "write": "open('.container/exit.json', 'w')",
    "read": "open('.container/container.json')",
    "rename the slot": "import os; os.rename('/edgeai/slot', '/edgeai/mine')",
}


async def test_a_worker_cannot_touch_what_the_launcher_remembers(run_each):
    said = await run_each({name: attempt(script) for name, script in REMEMBERED.items()})

    assert {name: text for name, text in said.items() if not text.startswith("refused: ")} == {}


async def test_links_that_a_worker_leaves_behind_lead_the_launcher_nowhere(tmp_path, run, slot):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    before = [(outside / name).stat().st_uid for name in ("", "file")]
    script = f"import os; os.symlink({str(outside)!r}, 'folder'); os.symlink({str(outside / 'file')!r}, 'file')"
    await run(script)

    await run("")  # the next start hands the slot over again

    assert (slot / "folder").is_symlink()
    assert [(outside / name).stat().st_uid for name in ("", "file")] == before


async def test_a_fork_bomb_ends_at_the_limit(run):
    script = """
import os, signal
children = []
try:
    while len(children) < 1000:
        if (pid := os.fork()) == 0:
            signal.pause()
        children.append(pid)
except OSError as error:
    print(len(children), error)
"""
    outcome = await run(script, pids=32)

    assert int(outcome.log.split()[0]) < 32
    assert "temporarily unavailable" in outcome.log


async def test_nothing_that_a_worker_started_outlives_it(run):
    name = f"probe-{os.getpid()}"
    script = f"""
import os
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.set_inheritable(writer, True)
        program = f"import os, signal; os.write({{writer}}, b'!'); signal.pause()"
        os.execv("/usr/bin/python3", [{name!r}, "-c", program])
    os._exit(0)
os.read(reader, 1)
"""
    assert (await run(script)).record.code == 0
    assert [each for each in psutil.process_iter(["cmdline"]) if name in (each.info["cmdline"] or [])] == []


async def test_a_memory_hog_is_told_by_name(run):
    outcome = await run("hog = b'x' * (512 << 20)", memory_bytes=64 * MIB)

    assert outcome.record.reason is ExitReason.OOM
    assert outcome.record.signal == "SIGKILL"


async def test_a_child_that_is_a_memory_hog_does_not_make_the_ending_of_its_worker_wrong(run):
    script = """
import subprocess, sys
print(subprocess.run([sys.executable, "-c", "hog = b'x' * (512 << 20)"]).returncode)
"""
    outcome = await run(script, memory_bytes=64 * MIB)

    assert (outcome.record.reason, outcome.record.code, outcome.log) == (ExitReason.EXITED, 0, "-9\n")


@pytest.mark.parametrize("path", ["/tmp/hog", "/dev/shm/hog"])
async def test_memory_file_systems_are_limited(path, run):
    script = attempt(f"file = open({path!r}, 'wb', 0)\nwhile file.tell() < 1 << 30: file.write(bytes(1 << 20))")

    outcome = await run(script, tmpfs_bytes=8 * MIB, memory_bytes=256 * MIB)

    assert "No space left" in outcome.log


async def test_a_disk_filler_ends_at_the_file_size_limit(run, slot):
    script = attempt("file = open('hog', 'wb', 0)\nwhile True: file.write(bytes(1 << 20))")

    outcome = await run(script, file_limit_bytes=4 * MIB)

    assert "File too large" in outcome.log
    assert (slot / "hog").stat().st_size == 4 * MIB


async def test_the_number_of_open_files_is_limited(run):
    outcome = await run(attempt("files = [open('/etc/passwd') for _ in range(100_000)]"))

    assert "Too many open files" in outcome.log


async def test_a_cpu_hog_is_throttled(run):
    script = """
import glob, os, time
if os.fork() == 0:
    while True: pass
end = time.process_time() + 0.5
while time.process_time() < end: pass
[stat] = glob.glob("/sys/fs/cgroup/cpu/cpu.stat") or glob.glob("/sys/fs/cgroup/cpu.stat")
print(dict(line.split() for line in open(stat))["nr_throttled"])
"""
    assert int((await run(script, cpus=0.5)).log) > 0


async def test_an_endless_log_keeps_to_its_limit(run, launcher, slot):
    limit = 1 * MIB
    outcome = await run("for i in range(300_000): print(f'{i:0100}')", log_limit_bytes=limit)

    size, offset, last = 0, 0, b""
    while (part := await launcher.read_log(slot, offset)).text:
        assert len(part.text) <= LOG_PART_BYTES
        size, offset, last = size + len(part.text), part.next_offset, part.text

    assert outcome.record.code == 0
    assert 0 < size <= limit
    assert last.endswith(b"299999\n")


async def test_a_line_without_end_keeps_to_the_limits(run, launcher, slot):
    await run("import sys\nfor _ in range(4000): sys.stdout.write('x' * 1000)", log_limit_bytes=1 * MIB)

    assert 0 < len((await launcher.read_log(slot)).text) <= LOG_PART_BYTES


async def test_a_pipe_in_the_slot_does_not_stop_the_launcher(run):
    await run("import os; os.mkfifo('worker.log'); os.mkfifo('exit.json'); os.mkfifo('run.json')")

    assert (await run("print('again')")).log.endswith("again\n")


async def test_the_machine_is_unimpressed(run):
    """All at once: while a worker tries everything that is bounded, this process goes on."""
    script = """
import os, threading
for _ in range(20):
    if os.fork() == 0:
        while True: pass
threading.Thread(target=lambda: [print("x" * 10_000) for _ in range(5000)]).start()
hog = []
while True: hog.append(bytes(1 << 20))
"""
    assert threading.active_count() < 50
    assert (await run(script, memory_bytes=64 * MIB)).record.reason is ExitReason.OOM
