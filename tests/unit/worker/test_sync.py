"""The thread behind `join_sync`: what a call waits for, raises, and leaves behind."""

from __future__ import annotations

import asyncio
import threading

import pytest

from edgeai.worker.round import Round
from edgeai.worker.sync import BackgroundLoop, SyncRound, SyncTask
from edgeai.worker.task import Task


async def answer(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def fail() -> None:
    raise ValueError("no")


class Recorder:
    """A coroutine that waits for ever, and says that it began and how it ended."""

    def __init__(self) -> None:
        self.began, self.cancelled = threading.Event(), threading.Event()

    async def wait(self) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def test_a_call_returns_what_the_coroutine_returns():
    with BackgroundLoop() as loop:
        assert loop.call(answer(7)) == 7


def test_a_call_raises_what_the_coroutine_raises():
    with BackgroundLoop() as loop, pytest.raises(ValueError, match="no"):
        loop.call(fail())


def test_the_loop_runs_while_the_caller_is_busy():
    with BackgroundLoop() as loop:
        turned = threading.Event()
        loop.call(_later(turned))
        assert turned.wait(20)  # this thread does nothing for the loop


async def _later(turned: threading.Event) -> None:
    asyncio.get_running_loop().call_later(0.01, turned.set)


def test_leaving_cancels_what_still_runs():
    left = Recorder()
    with BackgroundLoop() as loop:
        loop.call(_start(left))
        assert left.began.wait(20)
    assert left.cancelled.is_set()


async def _start(recorder: Recorder) -> None:
    recorder.task = asyncio.create_task(recorder.wait())  # type: ignore[attr-defined]


def test_an_interrupt_of_the_waiting_cancels_the_work_and_passes(monkeypatch):
    waiting = Recorder()

    def interrupted(future: object) -> None:
        assert waiting.began.wait(20)
        raise KeyboardInterrupt

    with BackgroundLoop() as loop:
        monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.call(waiting.wait())
        assert waiting.cancelled.is_set()


@pytest.mark.parametrize(("twin", "original"), [(SyncRound, Round), (SyncTask, Task)])
def test_the_twin_has_every_verb_of_the_original(twin, original):
    assert {name for name in vars(original) if not name.startswith("_")} - {"base_digest"} <= set(vars(twin))
