"""Three ways to ask, and what they find: one after the other, at an even rate, and as many at once as are allowed.

The same for a worker's script, for what is written by hand, and for a program outside. A question's time counts from when it
was due. Who asks is told what to do by files in a folder: `wanted-<number>.json` is done, and `found-<number>.json` says what
came of it. While it asks it writes nothing.
"""

import asyncio
import json
import time
from dataclasses import asdict, dataclass, field

from model import image

LOOK_S, WARM_UP_S, PATIENCE_S = 0.05, 0.3, 10.0
MAX_ON_THE_WAY = 512
"""Of a rate that is too high for who answers: more fail at once."""


@dataclass(frozen=True)
class Wanted:
    """`ask`: the name of a way to get an answer. `rate` per second, or `at_once`, or neither: one after the other."""

    ask: str
    seconds: float
    hard: bool = False
    rate: int = 0
    at_once: int = 0


@dataclass
class Found:
    """`by`: how many were answered by whom, `failed` included. `seconds`: of each that did not fail."""

    by: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    first_s: float = 0.0
    last_s: float = 0.0
    failure: str = ""


async def asked(wanted, asks) -> Found:
    """`asks`: coroutine functions by name; each gets an image and returns who has answered."""
    ask, x, found = asks[wanted.ask], image(hard=wanted.hard), Found()
    warm_s = time.perf_counter() + WARM_UP_S
    end_s = warm_s + wanted.seconds

    async def one(due_s: float) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                by = await ask(x)
        except Exception as error:  # noqa: BLE001 - of whatever way to ask
            by, found.failure = "failed", f"{type(error).__name__}: {error}"
        now_s = time.perf_counter()
        if due_s < warm_s:
            return
        found.by[by] = found.by.get(by, 0) + 1
        found.last_s = now_s
        if by != "failed":
            found.seconds.append(now_s - due_s)

    async def in_turn() -> None:
        while (now_s := time.perf_counter()) < end_s:
            await one(now_s)

    async def at_a_rate() -> None:
        begin_s, number, on_the_way = time.perf_counter(), 0, set()
        while (due_s := begin_s + number / wanted.rate) < end_s:
            number += 1
            if (early_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(early_s)
            if len(on_the_way) >= MAX_ON_THE_WAY:
                found.by["failed"] = found.by.get("failed", 0) + 1
                found.failure = f"{MAX_ON_THE_WAY} questions were on their way"
                continue
            task = asyncio.create_task(one(due_s))
            on_the_way.add(task)
            task.add_done_callback(on_the_way.discard)
        await asyncio.gather(*on_the_way)

    await (at_a_rate() if wanted.rate else asyncio.gather(*(in_turn() for _ in range(max(1, wanted.at_once)))))
    found.first_s = warm_s
    return found


async def follow(folder, asks) -> None:
    """Do what is wanted, for ever."""
    folder.mkdir(exist_ok=True)
    (folder / "ready").touch()
    number = 0
    while True:
        wanted = folder / f"wanted-{number}.json"
        if not wanted.exists():
            await asyncio.sleep(LOOK_S)
            continue
        found = await asked(Wanted(**json.loads(wanted.read_text())), asks)
        write(folder / f"found-{number}.json", found)
        number += 1


def write(path, value) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(asdict(value)))
    unfinished.rename(path)
