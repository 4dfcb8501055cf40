"""The one loop: committed before acknowledged before done, and the same end wherever it is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from edgeai import reactor as reactor_module
from edgeai.errors import BusUnavailable, StoreError
from edgeai.events.catalogue import WorkerJoined
from edgeai.lifecycle.base import CancelTimer, Command, Emit, Forget, Machine, SetTimer, TimerFired
from edgeai.reactor import Batch, Reactor

FACT = Emit(WorkerJoined("0" * 32, "a"))


@dataclass(frozen=True, slots=True)
class Log:
    """State: what was said, in order. `begin x` without `end x` waits for Work(x)."""

    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Say:
    line: str
    commands: tuple[Command, ...] = ()


@dataclass(frozen=True, slots=True)
class Work(Command):
    name: str


def say(line: str, *commands: Command) -> Say:
    return Say(line, commands)


def begin(name: str) -> Say:
    return say(f"begin {name}", Work(name))


def step(log: Log, event: Any) -> tuple[Log, tuple[Command, ...]]:
    match event:
        case Say(line="nothing", commands=commands):
            return log, commands
        case Say(line="mistake"):
            raise RuntimeError("a mistake of the machine")
        case Say(line=line, commands=commands) if line not in log.lines:
            return Log((*log.lines, line)), commands
        case TimerFired(name=name):
            return Log((*log.lines, f"timer {name}")), ()
    return log, ()


def resume(log: Log) -> tuple[Command, ...]:
    begun = [line.removeprefix("begin ") for line in log.lines if line.startswith("begin ")]
    extra = (SetTimer("again", 60.0),) if "timer wanted" in log.lines else ()
    gone = (Forget(),) if "gone" in log.lines else ()
    return (*(Work(name) for name in begun if f"end {name}" not in log.lines), *extra, *gone)


MACHINE = Machine(Log, lambda _key: Log(), step, resume)


class Crash(Exception):
    """The process ends here."""


@dataclass
class Memory:
    """A journal. `fail` is called with the number of each commit before it is durable, `fail_after` when it is."""

    states: dict[str, Log] = field(default_factory=dict)
    timers: dict[tuple[str, str], float] = field(default_factory=dict)
    facts: list[Emit] = field(default_factory=list)
    commits: list[Batch[Log]] = field(default_factory=list)
    fail: Callable[[int], None] = lambda _number: None
    fail_after: Callable[[int], None] = lambda _number: None

    async def load(self) -> tuple[dict[str, Log], dict[tuple[str, str], float]]:
        return dict(self.states), dict(self.timers)

    async def commit(self, batch: Batch[Log]) -> None:
        number = len(self.commits)
        self.commits.append(replace(batch))
        await asyncio.sleep(0)
        self.fail(number)
        for key, state in batch.states.items():
            if state is None:
                self.states.pop(key, None)
            else:
                self.states[key] = state
        self.timers = dict(batch.timers)
        self.facts += batch.facts
        self.fail_after(number)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def ends(_key: str, command: Work) -> Say:
    return say(f"end {command.name}")


Perform = Callable[[str, Any], Awaitable[Any]]


@asynccontextmanager
async def running(memory: Memory, perform: Perform = ends, **options: Any) -> AsyncIterator[Reactor[Log]]:
    reactor: Reactor[Log] = Reactor(MACHINE, memory, perform, **options)
    await reactor.load()
    task = asyncio.create_task(reactor.run())
    try:
        yield reactor
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def taken(reactor: Reactor[Log], *events: Any, key: str = "k") -> None:
    """Post events as one batch and return when they are acknowledged."""
    done = asyncio.Event()

    async def acknowledge() -> None:
        done.set()

    for event in events[:-1]:
        reactor.post(key, event)
    reactor.post(key, events[-1], acknowledge)
    await asyncio.wait_for(done.wait(), 10)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor_module, "_FIRST_RETRY_S", 0.001)


# --- the order of things


async def test_what_is_acknowledged_is_committed_and_what_is_done_is_acknowledged():
    order: list[str] = []
    memory = Memory(fail_after=lambda _: order.append("committed"))

    async def perform(_key: str, _command: Command) -> None:
        order.append("done")

    async def acknowledge() -> None:
        order.append("acknowledged")

    async with running(memory, perform) as reactor:
        reactor.post("k", begin("x"), acknowledge)
        await until(lambda: "done" in order)
    assert order == ["committed", "acknowledged", "done"]


async def test_events_that_wait_are_one_transaction():
    memory = Memory()
    async with running(memory) as reactor:
        await taken(reactor, say("1", FACT), say("2", SetTimer("t", 60.0)), say("3"))
    assert len(memory.commits) == 1
    assert (memory.states["k"].lines, memory.facts, list(memory.timers)) == (("1", "2", "3"), [FACT], [("k", "t")])


async def test_keys_do_not_know_of_each_other():
    memory = Memory()
    async with running(memory) as reactor:
        reactor.post("one", say("1"))
        await taken(reactor, say("2"), key="two")
    assert memory.states == {"one": Log(("1",)), "two": Log(("2",))}


async def test_an_event_that_changes_nothing_is_acknowledged_without_a_commit():
    memory = Memory(states={"k": Log(("1",))})
    async with running(memory) as reactor:
        await taken(reactor, say("1"))
    assert memory.commits == []


async def test_an_event_for_an_unknown_key_that_leads_to_nothing_leaves_nothing():
    memory = Memory()
    async with running(memory) as reactor:
        await taken(reactor, say("nothing"))
        assert dict(reactor.states) == {}


async def test_a_fact_without_a_new_state_is_committed():
    memory = Memory(states={"k": Log()})
    async with running(memory) as reactor:
        await taken(reactor, say("nothing", FACT))
    assert memory.facts == [FACT]


async def test_states_are_those_that_are_committed():
    seen: list[dict[str, Log]] = []
    memory = Memory()
    async with running(memory) as reactor:
        memory.fail = lambda _: seen.append(dict(reactor.states))
        await taken(reactor, say("1"))
        assert dict(reactor.states) == {"k": Log(("1",))}
    assert seen == [{}]


async def test_who_wants_to_know_is_told_after_the_commit_which_keys_have_changed():
    told: list[list[str]] = []
    memory = Memory(states={"same": Log(("1",))})

    async def on_commit(keys: Any) -> None:
        told.append(sorted(keys))

    async with running(memory, on_commit=on_commit) as reactor:
        reactor.post("same", say("1"))
        await taken(reactor, say("1"), key="changed")
        await until(lambda: bool(told))
    assert told == [["changed"]]


async def test_the_answer_of_a_command_is_an_event():
    memory = Memory()
    async with running(memory) as reactor:
        await taken(reactor, begin("x"))
        await until(lambda: memory.states["k"].lines == ("begin x", "end x"))


# --- what goes wrong


@pytest.mark.parametrize("error", [BusUnavailable("mqtt://x"), OSError("disk"), ValueError("a mistake")], ids=repr)
async def test_a_command_that_fails_is_repeated(error):
    failures, memory = [error, error], Memory()

    async def perform(key: str, command: Work) -> Say:
        if failures:
            raise failures.pop()
        return await ends(key, command)

    with capture_logs():
        async with running(memory, perform) as reactor:
            await taken(reactor, begin("x"))
            await until(lambda: "end x" in memory.states["k"].lines)


async def test_a_command_is_not_repeated_when_its_key_is_gone():
    tries, memory, go_on = [], Memory(), asyncio.Event()

    async def perform(_key: str, command: Work) -> None:
        tries.append(command.name)
        await go_on.wait()
        raise BusUnavailable("mqtt://x")

    async with running(memory, perform) as reactor:
        await taken(reactor, begin("x"))
        await until(lambda: tries == ["x"])
        await taken(reactor, say("nothing", Forget()))
        go_on.set()
        await until(lambda: not reactor._effects)
    assert tries == ["x"]


@pytest.mark.parametrize("error", [StoreError("disk full"), BusUnavailable("nats://x")], ids=repr)
async def test_nothing_is_acknowledged_while_the_store_is_away_and_nothing_is_lost(error):
    failures, acknowledged, memory = [error, error], [], Memory()

    def fail(_number: int) -> None:
        assert not acknowledged
        if failures:
            raise failures.pop()

    memory.fail = fail

    async def acknowledge() -> None:
        acknowledged.append(dict(memory.states))

    async with running(memory) as reactor:
        reactor.post("k", say("1"), acknowledge)
        await until(lambda: bool(acknowledged))
    assert acknowledged == [{"k": Log(("1",))}]


async def test_a_commit_that_fails_for_good_ends_the_loop():
    def fail(_number: int) -> None:
        raise Crash

    reactor: Reactor[Log] = Reactor(MACHINE, Memory(fail=fail), ends)
    await reactor.load()
    reactor.post("k", say("1"))
    with pytest.raises(Crash):
        await asyncio.wait_for(reactor.run(), 10)


async def test_an_event_at_which_a_machine_fails_is_logged_and_does_not_come_back():
    memory = Memory(states={"k": Log(("1",))})
    with capture_logs() as logs:
        async with running(memory) as reactor:
            await taken(reactor, say("mistake"), say("2"))
    assert memory.states == {"k": Log(("1", "2"))}
    assert [(entry["event"], entry["log_level"], entry["key"]) for entry in logs] == [("event_failed", "error", "k")]


async def test_a_slow_command_holds_up_neither_its_own_key_nor_others():
    memory, never = Memory(), asyncio.Event()

    async def perform(key: str, command: Work) -> Any:
        if command.name == "slow":
            await never.wait()
        return await ends(key, command)

    async with running(memory, perform) as reactor:
        await taken(reactor, begin("slow"), say("go", SetTimer("t", 0.0)))
        await taken(reactor, begin("x"), key="other")
        await until(lambda: "timer t" in memory.states["k"].lines)
        await until(lambda: "end x" in memory.states["other"].lines)
        await taken(reactor, say("nothing", Forget()))


async def test_ending_stops_what_is_under_way():
    stopped, started, memory = [], asyncio.Event(), Memory()

    async def perform(_key: str, _command: Work) -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            stopped.append(True)

    async with running(memory, perform) as reactor:
        await taken(reactor, begin("x"))
        await started.wait()
    assert stopped == [True]


# --- timers


async def test_a_timer_fires_once():
    memory = Memory()
    async with running(memory) as reactor:
        await taken(reactor, say("go", SetTimer("t", 0.0)))
        await until(lambda: memory.states["k"].lines == ("go", "timer t"))
    assert memory.timers == {}


async def test_a_cancelled_timer_is_not_stored_any_more():
    memory = Memory()
    async with running(memory) as reactor:
        await taken(reactor, say("go", SetTimer("t", 60.0)))
        assert list(memory.timers) == [("k", "t")]
        await taken(reactor, say("nothing", CancelTimer("t")))
        assert memory.timers == {}


async def test_a_timer_is_stored_even_if_the_state_is_the_same():
    memory = Memory(states={"k": Log()})
    async with running(memory) as reactor:
        await taken(reactor, say("nothing", SetTimer("t", 60.0)))
    assert list(memory.timers) == [("k", "t")]


async def test_cancelling_a_timer_that_does_not_run_is_nothing():
    memory = Memory(states={"k": Log()})
    async with running(memory) as reactor:
        await taken(reactor, say("nothing", CancelTimer("t")))
    assert memory.commits == []


@pytest.mark.parametrize("command", [CancelTimer("t"), SetTimer("t", 60.0)], ids=["cancelled", "set anew"])
async def test_a_timer_that_was_cancelled_or_set_anew_after_it_fired_has_not_fired(command):
    memory = Memory(states={"k": Log()})
    async with running(memory) as reactor:
        reactor._arm("k", "t", 60.0)
        reactor.post("k", say("changed", command))
        reactor._fire("k", "t")
        await taken(reactor, say("later"))
    assert memory.states["k"].lines == ("changed", "later")


async def test_a_forgotten_key_takes_its_timers_with_it():
    memory = Memory()
    async with running(memory) as reactor:
        await taken(reactor, say("go", SetTimer("t", 60.0), SetTimer("u", 60.0)))
        await taken(reactor, say("stay", SetTimer("t", 60.0)), key="other")
        await taken(reactor, say("nothing", Forget()))
        assert dict(reactor.states) == {"other": Log(("stay",))}
    assert (memory.states, list(memory.timers)) == ({"other": Log(("stay",))}, [("other", "t")])


async def test_what_is_left_of_a_timer_survives_a_restart():
    memory, clock = Memory(), Clock()
    async with running(memory, clock=clock) as reactor:
        await taken(reactor, say("go", SetTimer("t", 100.0)))
        clock.now += 30
        await taken(reactor, say("more"))
    assert memory.timers == {("k", "t"): 70.0}
    later = Clock()
    later.now = 5.0  # another boot: the monotonic clock begins anew
    async with running(memory, clock=later) as reactor:
        later.now += 20
        await taken(reactor, say("again"))
    assert memory.timers == {("k", "t"): 50.0}


async def test_what_is_left_of_timers_is_stored_now_and_then_though_nothing_happens(monkeypatch):
    monkeypatch.setattr(reactor_module, "_SAVE_TIMERS_S", 0.001)
    memory, clock = Memory(), Clock()
    async with running(memory, clock=clock) as reactor:
        await taken(reactor, say("go", SetTimer("t", 100.0)))
        clock.now += 40
        await until(lambda: memory.timers == {("k", "t"): 60.0})


async def test_a_timer_whose_time_has_passed_fires_at_the_start():
    memory = Memory(states={"k": Log(("go",))}, timers={("k", "t"): 0.0})
    async with running(memory):
        await until(lambda: memory.states["k"].lines == ("go", "timer t"))


async def test_a_timer_that_fired_and_was_not_committed_fires_again():
    def fail(number: int) -> None:
        if number == 1:
            raise Crash

    memory = Memory(fail=fail)
    reactor: Reactor[Log] = Reactor(MACHINE, memory, ends)
    await reactor.load()
    reactor.post("k", say("go", SetTimer("t", 0.0)))
    with pytest.raises(Crash):
        await asyncio.wait_for(reactor.run(), 10)
    assert memory.states["k"].lines == ("go",)
    async with running(memory):
        await until(lambda: memory.states["k"].lines == ("go", "timer t"))


# --- after a restart


async def test_what_a_state_waits_for_is_done_again():
    memory = Memory(states={"k": Log(("begin x", "begin y", "end y"))})
    done: list[str] = []

    async def perform(key: str, command: Work) -> Say:
        done.append(command.name)
        return await ends(key, command)

    async with running(memory, perform):
        await until(lambda: "end x" in memory.states["k"].lines)
    assert done == ["x"]


@pytest.mark.parametrize(("timers", "left"), [({}, 60.0), ({("k", "again"): 9.0}, 9.0)], ids=["lost", "running"])
async def test_a_timer_that_a_state_waits_for_is_set_unless_it_runs(timers, left):
    memory = Memory(states={"k": Log(("timer wanted",))}, timers=timers)
    async with running(memory, clock=Clock()) as reactor:
        await taken(reactor, say("more"))
    assert memory.timers == {("k", "again"): left}


async def test_a_state_that_waits_for_nothing_but_its_end_is_forgotten():
    memory = Memory(states={"k": Log(("gone",)), "other": Log()})
    async with running(memory):
        await until(lambda: list(memory.states) == ["other"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), min_size=1, max_size=6, unique=True),
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=4),
)
def test_a_crash_at_any_commit_leads_to_the_same_end(wanted, crashes):
    """Events come again until they are acknowledged; the process ends before or after a commit is durable."""

    async def play(crashes: list[tuple[int, bool]]) -> tuple[Any, ...]:
        memory, waiting = Memory(), list(wanted)
        left = list(crashes)

        def crash(number: int, durable: bool) -> None:
            if (number, durable) in left:
                left.remove((number, durable))
                raise Crash

        memory.fail = lambda number: crash(number, False)
        memory.fail_after = lambda number: crash(number, True)

        def over() -> bool:
            return not waiting and all(f"end {name}" in memory.states[key].lines for key, name in wanted)

        async with asyncio.timeout(20):
            while not over():
                reactor: Reactor[Log] = Reactor(MACHINE, memory, ends)
                await reactor.load()
                for item in list(waiting):

                    async def acknowledge(item: tuple[str, str] = item) -> None:
                        waiting.remove(item)

                    reactor.post(item[0], say(f"begin {item[1]}", Work(item[1]), FACT), acknowledge)
                run = asyncio.create_task(reactor.run())
                while not run.done() and not over():
                    await asyncio.sleep(0)
                run.cancel()
                [ended] = await asyncio.gather(run, return_exceptions=True)
                assert isinstance(ended, Crash | asyncio.CancelledError), ended
        states = {key: sorted(log.lines) for key, log in memory.states.items()}
        return states, len(memory.facts), memory.timers

    assert asyncio.run(play(crashes)) == asyncio.run(play([]))
