"""The one loop: delivery -> machine -> new state and facts committed -> acknowledgement -> commands -> their answers.

A service brings a `Machine` (pure), a `Journal` (where states are durable) and a `perform` (what to do for a command). The
reactor takes all events that wait, steps the machines, commits everything in one transaction, acknowledges, and only then
starts the commands. Each command runs as a task of its own, so a slow one holds up no deadline and no other key; its answer
comes back as an event. After a restart `machine.resume` says what each state waits for, and it is started again: commands may
be repeated, and nothing but the state says what is under way.

Timers run on the monotonic clock; what is left of them is committed with every transaction and every few seconds. A timer
that was cancelled or set anew after it had fired, and before that was heard, has not fired.

A machine never raises. If one does all the same, that event is logged as an error and has no effect: it must not come back
for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import structlog

from edgeai.crashpoints import crash_point
from edgeai.errors import BusError, EngineUnavailable, StoreError
from edgeai.lifecycle.base import CancelTimer, Command, Emit, Forget, Machine, SetTimer, TimerFired

log = structlog.get_logger()
S = TypeVar("S")

Perform = Callable[[str, Any], Awaitable[Any]]
"""Do a command of a key; returns the event that answers it, or None."""

_BATCH = 256
_SAVE_TIMERS_S = 5.0
_FIRST_RETRY_S, _MAX_RETRY_S = 0.5, 30.0


@dataclass(slots=True)
class Batch(Generic[S]):
    """What one transaction writes. A state of None removes the key. `timers` are all that run, with seconds left."""

    states: dict[str, S | None] = field(default_factory=dict)
    facts: list[Emit] = field(default_factory=list)
    timers: dict[tuple[str, str], float] = field(default_factory=dict)


class Journal(Protocol[S]):
    async def load(self) -> tuple[dict[str, S], dict[tuple[str, str], float]]:
        """States by key, and what is left of timers by (key, name)."""

    async def commit(self, batch: Batch[S]) -> None:
        """Durable and whole when it returns."""


@dataclass(slots=True)
class _Posted:
    key: str
    event: Any
    acknowledge: Callable[[], Awaitable[None]] | None = None


class Reactor(Generic[S]):
    """Runs one machine over many keys. `post` events, `run` for ever; `states` is what is committed."""

    def __init__(
        self,
        machine: Machine[S],
        journal: Journal[S],
        perform: Perform,
        *,
        on_commit: Callable[[Iterable[str]], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._machine, self._journal, self._perform = machine, journal, perform
        self._on_commit, self._clock = on_commit, clock
        self._queue: asyncio.Queue[_Posted] = asyncio.Queue()
        self._states: dict[str, S] = {}
        self._deadlines: dict[tuple[str, str], float] = {}
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._timers_changed = False
        self._committing = asyncio.Lock()
        self._effects: set[asyncio.Task[None]] = set()

    @property
    def states(self) -> Mapping[str, S]:
        return self._states

    def post(self, key: str, event: Any, acknowledge: Callable[[], Awaitable[None]] | None = None) -> None:
        """Queue an event; `acknowledge` runs when what it led to is durable."""
        self._queue.put_nowait(_Posted(key, event, acknowledge))

    async def load(self) -> None:
        """Read the journal; call before `run` if the states are needed earlier."""
        self._states, left = await self._journal.load()
        for (key, name), seconds in left.items():
            self._arm(key, name, seconds)
        self._timers_changed = False

    async def run(self) -> None:
        """Resume what was under way, then react for ever. Cancelling stops running effects."""
        for key, state in list(self._states.items()):
            self._start(key, self._machine.resume(state))
        saver = asyncio.create_task(self._save_timers())
        try:
            while True:
                await self._react(await self._take())
        finally:
            for task in (saver, *self._effects):
                task.cancel()
            await asyncio.gather(saver, *self._effects, return_exceptions=True)
            for handle in self._timers.values():
                handle.cancel()

    async def _take(self) -> list[_Posted]:
        posted = [await self._queue.get()]
        while len(posted) < _BATCH and not self._queue.empty():
            posted.append(self._queue.get_nowait())
        return posted

    async def _react(self, posted: list[_Posted]) -> None:
        batch: Batch[S] = Batch()
        started: list[tuple[str, Command]] = []
        states = dict(self._states)
        for item in posted:
            if isinstance(item.event, TimerFired) and not self._has_fired(item.key, item.event.name):
                continue
            before = states[item.key] if item.key in states else self._machine.initial(item.key)
            after, commands = self._step(item, before)
            if item.key not in states and after == before and not commands:
                continue
            batch.states[item.key] = states[item.key] = after
            for command in commands:
                match command:
                    case Emit():
                        batch.facts.append(command)
                    case SetTimer(name=name, after_s=after_s):
                        self._arm(item.key, name, after_s)
                    case CancelTimer(name=name):
                        self._disarm(item.key, name)
                    case Forget():
                        batch.states[item.key] = None
                        states.pop(item.key, None)
                        self._disarm_all(item.key)
                    case _:
                        started.append((item.key, command))
        changed = {key: state for key, state in batch.states.items() if state != self._states.get(key)}
        batch.states = changed
        if changed or batch.facts or self._timers_changed:
            crash_point("reactor.before_commit")
            await self._commit(batch)
            crash_point("reactor.after_commit")
        self._states = states
        for item in posted:
            if item.acknowledge is not None:
                await item.acknowledge()
        for key, command in started:
            if key in self._states:
                self._start(key, (command,))
        if self._on_commit is not None and (changed or batch.facts):
            await self._on_commit(changed)

    async def _commit(self, batch: Batch[S]) -> None:
        """Write until it is durable: while the store is away or full, nothing is acknowledged and nothing is done."""
        delay = _FIRST_RETRY_S
        while True:
            try:
                await self._write(batch)
                return
            except (BusError, StoreError) as error:
                log.warning("commit_delayed", keys=sorted(batch.states), cause=str(error))
            await asyncio.sleep(delay)
            delay = min(delay * 2, _MAX_RETRY_S)

    async def _write(self, batch: Batch[S]) -> None:
        """One at a time: what is left of timers must not be overwritten by what was left before."""
        async with self._committing:
            batch.timers = self._left()
            await self._journal.commit(batch)
            self._timers_changed = False

    def _step(self, item: _Posted, before: S) -> tuple[S, tuple[Command, ...]]:
        if isinstance(item.event, Forget):
            return before, (item.event,)
        try:
            return self._machine.step(before, item.event)
        except Exception:
            log.exception("event_failed", key=item.key, kind=type(item.event).__name__)
            return before, ()

    def _start(self, key: str, commands: Iterable[Command]) -> None:
        for command in commands:
            if isinstance(command, Forget):
                self._queue.put_nowait(_Posted(key, command))
                continue
            if isinstance(command, SetTimer):
                if (key, command.name) not in self._deadlines:
                    self._arm(key, command.name, command.after_s)
                continue
            task = asyncio.create_task(self._carry_out(key, command), name=f"{key}:{type(command).__name__}")
            self._effects.add(task)
            task.add_done_callback(self._effects.discard)

    async def _carry_out(self, key: str, command: Command) -> None:
        """Perform until it succeeds or its key is gone: failures come back as events, a bus or engine that is away delays."""
        delay = _FIRST_RETRY_S
        while True:
            try:
                answer = await self._perform(key, command)
            except (BusError, EngineUnavailable) as error:
                log.info("command_delayed", key=key, command=type(command).__name__, cause=str(error))
            except Exception:
                log.exception("command_failed", key=key, command=type(command).__name__)
            else:
                if answer is not None:
                    self.post(key, answer)
                return
            await asyncio.sleep(delay)
            delay = min(delay * 2, _MAX_RETRY_S)
            if key not in self._states:
                return

    # --- timers

    def _arm(self, key: str, name: str, after_s: float) -> None:
        self._disarm(key, name)
        after_s = max(after_s, 0.0)
        self._timers_changed = True
        self._deadlines[key, name] = self._clock() + after_s
        self._timers[key, name] = asyncio.get_running_loop().call_later(after_s, self._fire, key, name)

    def _fire(self, key: str, name: str) -> None:
        # The deadline stays, with nothing left, until what it led to is committed: a crash in between fires it again.
        self._timers.pop((key, name), None)
        self.post(key, TimerFired(name))

    def _has_fired(self, key: str, name: str) -> bool:
        """Whether a timer that was heard of still counts; then it is over."""
        if (key, name) not in self._deadlines or (key, name) in self._timers:
            return False
        self._disarm(key, name)
        return True

    def _disarm(self, key: str, name: str) -> None:
        if self._deadlines.pop((key, name), None) is not None:
            self._timers_changed = True
        handle = self._timers.pop((key, name), None)
        if handle is not None:
            handle.cancel()

    def _disarm_all(self, key: str) -> None:
        for owner, name in [timer for timer in self._deadlines if timer[0] == key]:
            self._disarm(owner, name)

    def _left(self) -> dict[tuple[str, str], float]:
        now = self._clock()
        return {timer: max(deadline - now, 0.0) for timer, deadline in self._deadlines.items()}

    async def _save_timers(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_TIMERS_S)
            if self._deadlines:
                try:
                    await self._write(Batch())
                except (BusError, StoreError) as error:
                    log.debug("timers_not_saved", cause=str(error))
