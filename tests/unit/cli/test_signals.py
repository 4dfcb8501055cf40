"""Cancelling by signals, and what is done to its end all the same."""

import asyncio
import os
import signal

import pytest

from edgeai.cli.lock import locked
from edgeai.cli.signals import Interrupted, finish, until_signalled
from edgeai.errors import Refused


async def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda value: str(int(value)),
)
def test_a_signal_cancels_the_work_and_gives_the_exit_code(number, code):
    async def work() -> None:
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    before = signal.getsignal(number)
    if before is signal.SIG_IGN:  # as when the tests were started by nohup
        signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(Interrupted) as interrupted:
            asyncio.run(until_signalled(work()))
    finally:
        signal.signal(number, before)
    assert interrupted.value.exit_code == code


def test_without_a_signal_the_result_is_that_of_the_work():
    assert asyncio.run(until_signalled(asyncio.sleep(0, "done"))) == "done"


def test_what_fails_without_a_signal_fails_as_it_is():
    async def work() -> None:
        raise Refused("no")

    with pytest.raises(Refused):
        asyncio.run(until_signalled(work()))


def test_cleaning_up_is_finished_however_often_a_signal_comes():
    cleaned: list[str] = []

    async def clean_up() -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.01)
        cleaned.append("all")

    async def work() -> None:
        try:
            await interrupt()
        finally:
            await finish(clean_up())

    with pytest.raises(Interrupted):
        asyncio.run(until_signalled(work()))
    assert cleaned == ["all"]


def test_a_second_signal_cuts_short_what_the_first_has_begun():
    reached: list[str] = []

    async def work() -> None:
        try:
            await interrupt()
        finally:
            try:
                await interrupt()  # waits for ever, but for a second signal
            finally:
                reached.append("last step")

    with pytest.raises(Interrupted):
        asyncio.run(until_signalled(work()))
    assert reached == ["last step"]


async def test_a_failure_while_finishing_is_passed_on():
    async def clean_up() -> None:
        raise Refused("no")

    with pytest.raises(Refused):
        await finish(clean_up())


def test_a_state_directory_has_one_holder_whose_process_is_named(tmp_path):
    said = rf"`edgeai up` runs on {tmp_path} already \(process {os.getpid()}\)"
    with locked(tmp_path, "up"), pytest.raises(Refused, match=said), locked(tmp_path, "up"):
        pass
    with locked(tmp_path, "up"):
        pass


def test_a_state_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="choose another --state-dir"), locked(tmp_path / "file" / "inside", "up"):
        pass
