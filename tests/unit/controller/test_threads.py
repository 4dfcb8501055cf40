"""Work in a thread that leaves something behind is over when whoever asked for it goes on, also after a cancellation."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from edgeai.controller.threads import to_its_end


async def test_one_that_is_cancelled_twice_still_waits_for_what_is_being_written(tmp_path: Path):
    begun, may_write = threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        may_write.wait(10)
        (tmp_path / "late").write_text("x")

    writing = asyncio.create_task(to_its_end(write))
    await asyncio.to_thread(begun.wait, 10)
    for _ in range(2):
        writing.cancel()
        await asyncio.sleep(0)
    assert not writing.done()
    may_write.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert (tmp_path / "late").exists()


async def test_its_result_and_its_error_are_those_of_the_work():
    assert await to_its_end(pow, 2, 3) == 8
    with pytest.raises(ZeroDivisionError):
        await to_its_end(divmod, 1, 0)
