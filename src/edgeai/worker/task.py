"""A worker's task as its script sees it: `async with edgeai.join() as task`.

Here is what a script touches first: joining, what it is told about its task, and the verbs of its role. What a role does on the
bus and on disk is beside this: federated training in `session` (one round of it in `round`), train and eval in `stage`,
deploy in `inference`, joint inference in `joint_edge` and `joint_cloud`. The same without await is in `sync`.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import structlog

from edgeai import logs, tracing
from edgeai.bus.base import Bus
from edgeai.errors import Refused
from edgeai.events.catalogue import Role
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.examples import Columns, DatasetAtHand
from edgeai.worker.inference import Answer, Inference
from edgeai.worker.joint_cloud import JointCloud
from edgeai.worker.joint_edge import JointEdge
from edgeai.worker.joint_work import end_process
from edgeai.worker.models import LocalModel
from edgeai.worker.predicting import Load, Predict
from edgeai.worker.round import Round
from edgeai.worker.session import RoundKey, Session, round_key
from edgeai.worker.spans import SERVICE, WorkerSpans
from edgeai.worker.stage import NewModel, StageRun

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a worker that was asked to stop before its task had ended."""
STOP_S = 3.0
"""Shorter than the grace of a controller, so that a program which hangs still says how it ended."""


Part = Session | StageRun | Inference | JointEdge | JointCloud
"""What a role does between the bus, the slot directory and the script."""
P = TypeVar("P", Session, StageRun, Inference)
_ROLES: dict[type[Any], str] = {
    Session: "training",
    StageRun: "train or eval",
    Inference: "deploy",
    JointEdge: "edge",
    JointCloud: "cloud",
}


class Task:
    """What a script sees of its task. A verb of another role than the worker's raises Refused.

    Attributes:
        name: name of the task, as in the manifest.
        node, worker: where this runs, and as whom.
        role: training (federated); the stage of an incremental learning job: train, eval, deploy; edge or cloud (joint
            inference).
        parameters: the worker's parameters by key, with defaults and the task's values filled in.
        dataset: name and path, and its examples; None if the worker has none. Of a train or eval worker: a snapshot.
        output_dir: files written here stay until the task is deleted.
        log: a structlog logger; what it and the script print is in `edgeai logs`.
    """

    def __init__(self, part: Part) -> None:
        me, slot = part.environment, part.slot_file
        self._part = part
        self.name, self.node, self.worker = slot.assignment.task_name, me.node, me.worker
        self.role = slot.assignment.role.value
        self.parameters: Mapping[str, Any] = dict(slot.assignment.parameters)
        path = Path(slot.dataset_path) if slot.dataset_path else None
        self.dataset = DatasetAtHand(slot.assignment.dataset, path) if path else None
        self.output_dir, self.log = me.slot.output, part.log

    # --- federated training

    async def rounds(self) -> AsyncIterator[Round]:
        """The rounds this worker is asked to join, the newest first if it was away, until the task ends."""
        session = self._as(Session, "rounds")
        done: RoundKey | None = None
        while (state := await session.next_round(done)) is not None:
            weights = await session.weights_of(state)
            if weights is None:
                continue
            done = round_key(state)
            round_ = Round(session, state, weights, self.parameters, opened_s=session.opened_s)
            session.entered(round_)
            await session.progress(round_.number, "training" if round_.train else "validating")
            yield round_
            await session.finished(round_)
            if round_.train and not round_.submitted:
                session.abstain(round_)

    # --- train and eval

    @property
    def round(self) -> int:
        """The round of the job that this train or eval worker works for: seed by it, and a run done again is the same."""
        return self._as(StageRun, "round").round

    @property
    def models(self) -> tuple[LocalModel, ...]:
        """What a train worker starts from, what an eval worker compares: the new model first, then the one that serves."""
        return self._as(StageRun, "models").models

    @property
    def base_model(self) -> LocalModel | None:
        """The model that serves, for a train worker to start from; None if there is none."""
        run = self._as(StageRun, "base_model")
        if run.role is not Role.TRAIN:
            raise Refused("task.base_model is for a train worker: an eval worker looks at each of task.models")
        return run.models[0] if run.models else None

    async def report(
        self, metrics: Mapping[str, float], *, model: NewModel | LocalModel | None = None, format: str = ""
    ) -> None:
        """Report the outcome of this run; returns when it is safe in the slot directory.

        Args:
            metrics: numbers by name; those of one class are named `<metric>/<label>`. Triggers look at them.
            model: in a train worker the new model: the path of a file (it is copied unless it lies in `output_dir`), or a
                list of arrays. In an eval worker the one of `task.models` that the metrics are of.
            format: of the new model's file, where the end of its name does not tell it.

        Raises:
            UpdateError: reported twice, without a model that fits the role, or metrics that are no numbers.
            NotFound: no such file.
            StoreError: the slot directory cannot be written.
        """
        await self._as(StageRun, "report").report(metrics, model, format)

    # --- deploy, edge and cloud

    async def serve(self, *, predict: Predict, load: Load | None = None, batched: bool = True) -> None:
        """Say how models are loaded and asked; returns when the first one serves. Once, before `infer`.

        A cloud worker answers the edges from then on.

        Args:
            predict: `predict(model, inputs)`, where model is what `load` returned. It gets a batch of one input (a first axis
                of length 1) and answers a batch of one; in a cloud worker of as many as came together. With `batched=False`
                it gets and answers the input alone.
            load: `load(model)`, where model has `path`, `format`, `version`. Without: the list of its arrays.

        Both may be async. Otherwise they run in threads: predict in one, so one request at a time, and for a new model load
        and predict in another, beside the requests that the serving one answers. With `batched=False` an async predict of a
        cloud or edge worker is run for several requests at once. A worker whose manifest names no model may do without
        `load`: predict gets what it returns, or None.

        Raises:
            Refused: called before, or the job's mining names an entry point that the script does not have.
        """
        if isinstance(self._part, JointEdge | JointCloud):
            await self._part.serve(predict, load, batched)
        else:
            await self._as(Inference, "serve").serve(predict, load, batched)

    async def infer(self, x: Any, *, id: str | None = None, deadline_s: float | None = None) -> Answer:
        """Answer one input; returns when its answer is there, and kept if it is hard. Requests are answered in their order.

        In an edge worker the cloud answers what is hard, if the service's policy lets it and it is in time; `answer.by` says
        who has.

        Args:
            x: the input, without a batch axis.
            id: the name by which a label is given to it later; by default made of its content.
            deadline_s: of an edge worker: when there is an answer or an error; by default the service's own.

        Raises:
            Refused: before `serve`; in an edge worker also: it is no input of the service.
            Overloaded: too many requests wait for this edge worker.
            DeadlineMissed: it had no answer in time.
            ModelError: the answer has values that are not finite, and no model before it knows better.
            Exception: what predict raises for this input, if the model before does not answer it either.
        """
        if isinstance(self._part, JointEdge):
            return await self._part.infer(x, id, deadline_s)
        inference = self._as(Inference, "infer")
        if deadline_s is not None:
            raise Refused("a deploy worker has no deadlines: deadline_s is for an edge worker")
        return await inference.infer(x, id)

    async def until_stopped(self) -> None:
        """Keep an edge or cloud worker here that has nothing else to do: requests are answered beside the script."""
        if not isinstance(self._part, JointEdge | JointCloud):
            raise self._another_role("until_stopped", "edge or cloud")
        await self._part.until_stopped()

    async def examples(self, *, batch_size: int = 32, path: str | Path | None = None) -> AsyncIterator[Columns]:
        """The rows of the worker's dataset, or of the file `path`, as it grows; for ever. npz, csv or jsonl.

        Batches are columns of arrays with at most `batch_size` rows, given as they come. Rows that a worker has seen are not
        given again after its restart, but for those of the last second. Text files are appended to, line by line; an npz file
        is replaced by one with more rows. A file that shrinks or begins otherwise is read from its start.

        Raises Refused: no dataset and no path, or another format.
        """
        async for batch in self._as(Inference, "examples").examples(batch_size, path):
            yield batch

    def _as(self, kind: type[P], verb: str) -> P:
        if isinstance(self._part, kind):
            return self._part
        raise self._another_role(verb, _ROLES[kind])

    def _another_role(self, verb: str, role: str) -> Refused:
        return Refused(f"task.{verb} is for a {role} worker, and {self.worker} of {self.name} is a {self.role} worker")


class join:  # noqa: N801 (reads as a verb where it is used)
    """Join the task that this process was started for: `async with edgeai.join() as task`.

    Without a broker it goes on and waits for one in `rounds()`. Leaving waits for the verdict of what was submitted,
    unless an error is passing through. SIGTERM ends the program with exit code TERMINATED, unless the script handles it.

    Raises:
        LaunchError: not started by a controller, or an unknown bus.
        NotFound, DamagedFile: the credentials file or the slot directory is not as a controller leaves them.
    """

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._part: Part | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._was_told = False

    async def __aenter__(self) -> Task:
        if not structlog.is_configured():
            logs.configure()
        loop = asyncio.get_running_loop()
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(_unless_terminated)
        environment = WorkerEnvironment.read()
        tracing.start(SERVICE)
        async with AsyncExitStack() as stack:
            self._loop = loop
            stack.enter_context(ended_by_sigterm(self._ends_by_itself))
            self._part = await stack.enter_async_context(_taken_up(environment))
            self._stack = stack.pop_all()
        return Task(self._part)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if exc is None or (isinstance(exc, SystemExit) and exc.code in (None, 0)):
                await self._leave()
            if isinstance(self._part, Session):
                await self._part.note()
        finally:
            await self._stack.aclose()
            if tracing.recording():
                # Not at the end of the process: it is too late then to begin with sending.
                await asyncio.to_thread(tracing.flush)

    def _ends_by_itself(self) -> bool:
        """In the handler of SIGTERM. True: others wait for this worker's answers, and it ends the program after them."""
        if self._loop is None or self._was_told or not isinstance(self._part, JointEdge | JointCloud):
            return False
        self._was_told = True
        self._loop.call_soon_threadsafe(self._begin_to_stop, self._part)
        return True

    def _begin_to_stop(self, part: JointEdge | JointCloud) -> None:
        async def stop() -> None:
            try:
                await part.stop()
            except Exception:
                part.log.exception("not_stopped_well")
            raise SystemExit(TERMINATED)

        self._stopping = asyncio.create_task(stop())

    async def _leave(self) -> None:
        match self._part:
            case Session() as session:
                await session.leave()
            case StageRun() as run:
                run.leave()


@asynccontextmanager
async def _taken_up(environment: WorkerEnvironment) -> AsyncIterator[Part]:
    """The part of this worker, by its role, with everything that runs beside the script. It waits for no broker."""
    assignment = environment.slot.read_slot().assignment
    role, spans = assignment.role, WorkerSpans(environment, assignment)
    if role in {Role.TRAIN, Role.EVAL}:
        run = StageRun(environment)
        await run.begin()
        spans.joined()
        yield run
        return
    bus = environment.open_bus()
    if role in {Role.DEPLOY, Role.EDGE, Role.CLOUD}:
        part = _inferring(role, environment, bus)
        async with bus, part.running():
            spans.joined()
            yield part
        return
    session = Session(environment, bus)
    async with bus, session.listening():
        await session.note()
        yield session


def _inferring(role: Role, environment: WorkerEnvironment, bus: Bus) -> Inference | JointEdge | JointCloud:
    match role:
        case Role.EDGE:
            return JointEdge(environment, bus)
        case Role.CLOUD:
            return JointCloud(environment, bus)
    return Inference(environment, bus)


@contextmanager
def ended_by_sigterm(ends_by_itself: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Let SIGTERM unwind the program as `sys.exit` does, so that contexts are left, and end it soon in any case.

    `ends_by_itself` is asked first: True: it does that soon, in a task of its own.

    Not by a callback of the event loop: a script may train in the loop's own thread. A handler of the script's is left
    alone. Outside of the main thread, where Python allows no handlers, this does nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(_signum: int, _frame: FrameType | None) -> None:
        last_resort = threading.Timer(STOP_S, _give_up)
        last_resort.daemon = True
        last_resort.start()
        if not ends_by_itself():
            raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _unless_terminated(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The end may pass through any task that happens to run; nobody need read that in the log."""
    if not isinstance(context.get("exception"), SystemExit):
        loop.default_exception_handler(context)


def _give_up() -> None:
    """Python waits for threads that train. Nothing they do counts any more."""
    end_process(TERMINATED)
