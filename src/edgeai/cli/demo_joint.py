"""`edgeai demo --feature joint-inference`: a small model on an edge asks a big one in the cloud about the digits it finds hard.

The service is that of `config/examples/joint-digits.yaml`, without its limit on what is sent. Every image that no model was
trained on is asked about three times: of the small model, of the big one, and as the service decides. What the first two
answer gives the curve: how right it would be with any share sent to the cloud. Then the link to the cloud is cut for ten
seconds, by stopping the edge's bridge, while questions go on. What is shown meanwhile is in `curves`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeai.asking import Edge, EdgeAnswer, connect_edge
from edgeai.cli.curves import CurveView
from edgeai.cli.naming import counted
from edgeai.client import Cloud
from edgeai.errors import EdgeaiError, LaunchError, Refused
from edgeai.events.address import CLOUD
from edgeai.launcher.children import read_record, record_path
from edgeai.resources.base import Resource
from edgeai.resources.joint import JointInferenceService
from edgeai.resources.manifest import load_manifests
from edgeai.resources.model import Model, ModelFormat
from edgeai.settings import shipped

SERVICE, SMALL, BIG, EDGE = "joint-digits", "digits-small", "digits-big", "edge1"
TRAINED, SEED = 1000, 11
"""Images that the models learned from: the first of an order; see config/examples/joint_digits_models.py."""
THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.01)
AT_ONCE = 4
READY_S, DEADLINE_S = 60.0, 2.0
BEFORE_S, CUT_S, AFTER_S, PER_S = 3, 10, 5, 40


@dataclass(frozen=True, slots=True)
class Asked:
    """One question: its answer, or why there is none, and the seconds that the application waited."""

    answer: EdgeAnswer | None
    error: str
    seconds: float
    at_s: float = 0.0

    @property
    def digit(self) -> int:
        return int(np.argmax(self.answer.prediction)) if self.answer is not None else -1


class JointDemo:
    """One run of it; `folder` is the playground's state directory."""

    def __init__(self, cloud: Cloud, folder: Path, *, framework: str, quiet: bool) -> None:
        self._cloud, self._folder, self._framework = cloud, folder, framework
        self._view, self._first_error = CurveView(quiet=quiet), ""
        with np.load(shipped("config/examples/digits.npz"), allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
        rows = np.random.RandomState(SEED).permutation(len(y))[TRAINED:]
        self._images, self._digits = x[rows], y[rows].astype(int)

    async def run(self, document: dict[str, Any]) -> None:
        """Fills `document`. Raises EdgeaiError; Refused also if a question had no answer."""
        await self._cloud.apply(self._resources(), base=shipped("config/examples"))
        service = await self._cloud.wait(JointInferenceService.__name__, SERVICE, _serves, READY_S)
        assert isinstance(service, JointInferenceService)
        document["phase"] = service.status.phase.value
        login = self._folder / EDGE / "credentials" / f"{EDGE}.app.json"
        async with connect_edge(EDGE, credentials_file=login) as edge:
            await self._show_curve(edge, document)
            await self._show_policy(edge, service, document)
            await self._show_cut(edge, document)
        await self._count(document)
        self._view.sum_up(document)
        if missing := document["cut"]["errors"] + document["policy"]["errors"]:
            raise Refused(f"{counted(missing, 'question')} had no answer; the first: {self._first_error}")

    def _resources(self) -> list[Resource]:
        file = shipped("config/examples/joint-digits.yaml")
        return [self._adapted(resource) for resource in load_manifests(file.read_text(encoding="utf-8"), file.name)]

    def _adapted(self, resource: Resource) -> Resource:
        """Without the limit, which would bend the curve; with Keras in the cloud, where that is asked for."""
        match resource:
            case JointInferenceService(spec=spec):
                cloud, policy = spec.cloud_worker, spec.policy.model_copy(update={"max_offload_fraction": 1.0})
                if self._framework == "tensorflow":
                    changes = {"script_dir": "../../workers/joint-tensorflow", "framework_type": "tensorflow"}
                    changes |= {"framework_version": ">=2.15"}
                    cloud = cloud.model_copy(update={"worker_spec": cloud.worker_spec.model_copy(update=changes)})
                spec = spec.model_copy(update={"policy": policy, "cloud_worker": cloud})
                return resource.model_copy(update={"spec": spec})
            case Model(spec=spec) if resource.name == BIG and self._framework == "tensorflow":
                keras = spec.model_copy(update={"url": f"{BIG}.keras", "format": ModelFormat.KERAS})
                return resource.model_copy(update={"spec": keras})
        return resource

    # --- the curve

    async def _show_curve(self, edge: Edge, document: dict[str, Any]) -> None:
        self._view.note(f"asking the small model about {len(self._images)} images that no model was trained on")
        small = await self._ask_all(edge, SMALL)
        self._view.note("asking the big one")
        big = await self._ask_all(edge, BIG)
        _require_answers([*small, *big])
        right_small = np.array([each.digit for each in small]) == self._digits
        right_big = np.array([each.digit for each in big]) == self._digits
        margins = np.array([_margin(each) for each in small])
        document["edge"] = {"accuracy": float(right_small.mean()), **_latency(small)}
        document["cloud"] = {"accuracy": float(right_big.mean()), **_latency(big)}
        document["curve"] = [_point(threshold, margins, right_small, right_big) for threshold in THRESHOLDS]
        self._view.curve(document)

    async def _show_policy(self, edge: Edge, service: JointInferenceService, document: dict[str, Any]) -> None:
        self._view.note("asking as the service decides")
        found = await self._ask_all(edge, "")
        self._first_error = _first_error(found)
        answers = [each for each in found if each.answer is not None]
        right = np.array([each.digit for each in found]) == self._digits
        by_cloud = [each for each in answers if _by_cloud(each)]
        parameters = service.spec.edge_workers[0].hard_example_mining.values()
        document["policy"] = {
            "threshold": parameters.get("threshold"),
            "sent": len(by_cloud) / len(found),
            "accuracy": float(right.mean()),
            "errors": len(found) - len(answers),
            "edge": _latency([each for each in answers if not _by_cloud(each)]),
            "cloud": _latency(by_cloud),
        }
        self._view.policy(document["policy"])

    async def _ask_all(self, edge: Edge, model: str) -> list[Asked]:
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(image: Any) -> Asked:
            async with turn:
                return await _ask(edge, image, model, DEADLINE_S)

        return await asyncio.gather(*(one(image) for image in self._images))

    # --- the cut

    async def _show_cut(self, edge: Edge, document: dict[str, Any]) -> None:
        self._view.note(f"asking {PER_S} times a second; in {BEFORE_S} s the link to the cloud goes, for {CUT_S} s")
        began, asking = time.monotonic(), asyncio.create_task(self._ask_for(edge, BEFORE_S + CUT_S + AFTER_S))
        try:
            await asyncio.sleep(BEFORE_S)
            with self._cut():
                cut_s = time.monotonic() - began
                self._view.note("the link is cut")
                await asyncio.sleep(CUT_S)
            mended_s = time.monotonic() - began
            self._view.note("the link is there again")
            found = await asking
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        seconds = [_second(number, found) for number in range(BEFORE_S + CUT_S + AFTER_S)]
        self._first_error = self._first_error or _first_error(found)
        back = next((each.at_s - mended_s for each in found if each.at_s >= mended_s and _by_cloud(each)), None)
        document["cut"] = {
            "asked": len(found),
            "errors": sum(each.answer is None for each in found),
            "cut_s": [cut_s, mended_s],
            "cloud_back_after_s": back,
            "longest_s": max(each.seconds for each in found),
            "seconds": seconds,
        }
        self._view.cut(document["cut"])

    async def _ask_for(self, edge: Edge, seconds: float) -> list[Asked]:
        """At an even rate, whatever the answers do."""
        began, asking = time.monotonic(), []
        for number in range(int(seconds * PER_S)):
            await asyncio.sleep(max(0.0, began + number / PER_S - time.monotonic()))
            image = self._images[number % len(self._images)]
            asking.append(asyncio.create_task(self._ask_at(edge, image, time.monotonic() - began)))
        return list(await asyncio.gather(*asking))

    @staticmethod
    async def _ask_at(edge: Edge, image: Any, at_s: float) -> Asked:
        return replace(await _ask(edge, image, "", 0.5), at_s=at_s)

    @contextmanager
    def _cut(self) -> Iterator[None]:
        """As if a cable were pulled: what goes to the cloud is neither carried nor refused. Raises LaunchError."""
        record = read_record(record_path(self._folder / EDGE, "bridge", EDGE))
        if record is None or not record.runs():
            raise LaunchError(f"the bridge of {EDGE} does not run: see {self._folder / EDGE / 'bridge.log'}")
        os.kill(record.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if record.runs():
                os.kill(record.process.pid, signal.SIGCONT)

    # --- what it cost

    async def _count(self, document: dict[str, Any]) -> None:
        """The service's own sums, as soon as its node has told those of the last question."""
        asked = 3 * len(self._images) + document["cut"]["asked"]

        def told(service: Resource | None) -> bool:
            return isinstance(service, JointInferenceService) and service.status.counts.inferences >= asked

        service = await self._cloud.wait(JointInferenceService.__name__, SERVICE, told, READY_S)
        assert isinstance(service, JointInferenceService)
        document["counts"] = service.status.counts.model_dump()


def _serves(service: Resource | None) -> bool:
    if not isinstance(service, JointInferenceService):
        return False
    status = service.status
    edges = [edge for edge in status.edges if edge.serving is not None]
    return len(edges) == len(service.spec.edge_workers) and status.replicas.ready > 0


async def _ask(edge: Edge, image: Any, model: str, deadline_s: float) -> Asked:
    began = time.monotonic()
    try:
        answer, error = await edge.infer(SERVICE, image, deadline_s=deadline_s, model=model), ""
    except EdgeaiError as failed:
        answer, error = None, str(failed)
    return Asked(answer, error, time.monotonic() - began)


def _require_answers(found: Sequence[Asked]) -> None:
    missing = sum(each.answer is None for each in found)
    if missing:
        raise Refused(f"{missing} of {len(found)} questions had no answer; the first: {_first_error(found)}")


def _first_error(found: Sequence[Asked]) -> str:
    return next((each.error for each in found if each.answer is None), "")


def _margin(asked: Asked) -> float:
    """Between the two likeliest digits: what Margin looks at."""
    assert asked.answer is not None
    second, first = np.sort(asked.answer.prediction)[-2:]
    return float(first - second)


def _point(threshold: float, margins: Any, right_small: Any, right_big: Any) -> dict[str, Any]:
    """What comes of sending everything with a margin under the threshold, and of sending as many at random."""
    sent = margins < threshold
    small, big, share = right_small.mean(), right_big.mean(), sent.mean()
    accuracy = np.where(sent, right_big, right_small).mean()
    return {
        "threshold": threshold,
        "sent": float(share),
        "accuracy": float(accuracy),
        "at_random": float(small + share * (big - small)),
        "recovered": float((accuracy - small) / (big - small)) if big > small else 0.0,
    }


def _latency(found: Sequence[Asked]) -> dict[str, float]:
    if not found:
        return {"p50_s": 0.0, "p99_s": 0.0}
    p50, p99 = np.percentile([each.seconds for each in found], [50, 99])
    return {"p50_s": float(p50), "p99_s": float(p99)}


def _by_cloud(asked: Asked) -> bool:
    return asked.answer is not None and asked.answer.by == CLOUD


def _second(number: int, found: Sequence[Asked]) -> dict[str, int]:
    these = [each for each in found if number <= each.at_s < number + 1]
    answers = [each.answer for each in these if each.answer is not None]
    return {
        "second": number,
        "asked": len(these),
        "edge": sum(answer.by != CLOUD and not answer.fell_back for answer in answers),
        "cloud": sum(answer.by == CLOUD for answer in answers),
        "fell_back": sum(bool(answer.fell_back) for answer in answers),
        "errors": len(these) - len(answers),
    }
