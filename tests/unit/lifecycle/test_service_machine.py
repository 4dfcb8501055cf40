"""A joint inference service as the coordinator sees it: it runs as long as somebody answers, and says what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_world import (
    ALL,
    BIG,
    LATER,
    NOW,
    RUNNING,
    SMALL,
    UID,
    after,
    condition,
    nodes,
    resource,
    row,
    seen,
    service,
    told,
)

from edgeai.events.catalogue import PhaseChanged, Scores, ServiceChanged, WorkerEnded
from edgeai.lifecycle.base import Emit, Forget
from edgeai.lifecycle.draft import MAX_REASON
from edgeai.lifecycle.service import MAX_MODELS, TRANSITIONS, FactSeen, Scaled, is_placed, places_of, step
from edgeai.resources.base import INTEGER_LIMIT
from edgeai.resources.conditions import ConditionType
from edgeai.resources.federated import TaskPhase

# --- phases


def test_a_service_whose_references_are_missing_waits_and_says_what_to_do():
    found = service(seen("model big does not exist", "node edge0 has never joined"))
    assert (found.status.phase, is_placed(found)) == (TaskPhase.PENDING, False)
    assert condition(found, ConditionType.ACCEPTED)[2] == "model big does not exist; node edge0 has never joined"


def test_a_service_with_its_references_is_placed_with_as_few_replicas_as_may_be():
    found, commands = after(seen("model big does not exist"), seen())
    assert is_placed(found)
    assert found.status.replicas.wanted == 1
    assert commands == [Emit(PhaseChanged(UID, "Preparing", "all references exist"), "digits")]


def test_it_runs_as_soon_as_one_edge_serves():
    found = service(seen(), nodes(row("little0"), row("little1", "Preparing")))
    assert found.status.phase is TaskPhase.RUNNING
    assert condition(found, ConditionType.READY) == ("True", "Serving", "1 of 2 edges serve")


@pytest.mark.parametrize("inference", [[], [told("little0", digest="")]], ids=["says nothing yet", "has no model yet"])
def test_a_worker_that_cannot_answer_yet_does_not_serve(inference):
    found = service(seen(), nodes(row("little0"), inference=inference))
    assert found.status.phase is TaskPhase.PREPARING
    assert condition(found, ConditionType.READY)[:2] == ("False", "NotServing")


def test_a_worker_without_a_model_serves_without_one():
    found = service(seen(model=False), nodes(row("little0"), inference=[told("little0", digest="")]))
    assert found.status.phase is TaskPhase.RUNNING


def test_it_fails_only_when_every_edge_worker_was_given_up():
    failed = [row(f"little{number}", "Failed", "no numpy") for number in range(2)]
    found = service(*RUNNING, nodes(failed[0], row("little1"), row("big-0")))
    assert found.status.phase is TaskPhase.RUNNING
    found = service(*RUNNING, nodes(*failed, row("big-0")))
    assert found.status.phase is TaskPhase.FAILED
    message = "little0 on edge0: no numpy; little1 on edge1: no numpy"
    assert condition(found, ConditionType.FAILED) == ("True", "EdgeWorkersFailed", message)


def test_it_does_not_fail_while_an_edge_may_answer_that_is_not_heard_of():
    found = service(*RUNNING, nodes(row("little0", "Failed", "no numpy"), row("big-0"), silent={"edge1"}))
    assert found.status.phase is TaskPhase.RUNNING
    assert condition(found, ConditionType.READY)[:2] == ("Unknown", "NodesSilent")


def test_a_service_that_failed_is_tried_again_and_runs():
    failed = nodes(row("little0", "Failed", "x"), row("little1", "Failed", "x"))
    found = service(seen(), failed, nodes(row("little0", "Starting"), row("little1", "Failed", "x")))
    assert (found.status.phase, is_placed(found)) == (TaskPhase.PREPARING, True)
    found = service(seen(), failed, nodes(*ALL))
    assert found.status.phase is TaskPhase.RUNNING
    assert condition(found, ConditionType.FAILED)[0] == "False"


def test_a_running_service_stays_when_a_reference_goes():
    found = service(*RUNNING, seen("model big does not exist"))
    assert (found.status.phase, condition(found, ConditionType.ACCEPTED)[0]) == (TaskPhase.RUNNING, "False")


def test_a_deleted_service_is_gone_when_nobody_runs_anything_of_it():
    found, commands = after(*RUNNING, seen(deleted=True), nodes(row("big-0", "Stopping")))
    assert (found.status.phase, is_placed(found)) == (TaskPhase.DELETING, False)
    assert Forget() not in commands
    assert Forget() in step(found, nodes())[1]


def test_another_service_of_the_name_begins_anew():
    found = service(*RUNNING, seen(uid="f" * 32))
    assert found.status.phase is TaskPhase.PREPARING
    assert found.status.workers == ()


def test_a_fact_changes_nothing():
    before = service(*RUNNING)
    fact = WorkerEnded(UID, row("little0").role, False, "exit 1")
    assert step(before, FactSeen(fact, LATER)) == (before, ())


# --- what does not work


@pytest.mark.parametrize(
    ("workers", "silent", "reason", "sentence"),
    [
        ([row("little0", "Failed", "no numpy"), *ALL[1:]], (), "EdgesInTrouble", "little0 on edge0: no numpy"),
        ([row("little0", "Backoff", "exit 1"), *ALL[1:]], (), "EdgesInTrouble", "little0 on edge0: exit 1"),
        (ALL, ("edge1",), "EdgesInTrouble", "little1 on edge1: edge1 is not heard of"),
        (
            [*ALL[:2], row("big-0", "Backoff", "exit 1")],
            (),
            "CloudInTrouble",
            "no replica of big works, edges answer alone: big-0 on cloud: exit 1",
        ),
        (
            ALL,
            ("cloud",),
            "CloudInTrouble",
            "no replica of big works, edges answer alone: big-0 on cloud: cloud is not heard of",
        ),
    ],
    ids=["edge failed", "edge restarting", "edge silent", "cloud restarting", "cloud silent"],
)
def test_what_goes_wrong_while_the_rest_answers_makes_it_degraded(workers, silent, reason, sentence):
    found = service(*RUNNING, nodes(*workers, silent=silent))
    assert condition(found, ConditionType.DEGRADED) == ("True", reason, sentence)
    assert (found.status.phase, condition(found, ConditionType.READY)[0]) == (TaskPhase.RUNNING, "True")


def test_one_replica_of_several_that_fails_is_no_trouble():
    rows = nodes(*ALL[:2], row("big-0", "Failed", "x"), row("big-1"))
    found = service(*RUNNING, Scaled(2, 0, "", NOW), rows)
    assert condition(found, ConditionType.DEGRADED) == ("", "", "")


def test_replicas_that_are_on_their_way_are_no_trouble():
    found = service(seen(), nodes(*ALL[:2], row("big-0", "Starting")))
    assert condition(found, ConditionType.DEGRADED) == ("", "", "")


def test_a_model_that_is_not_served_is_named_with_the_reason():
    refused = told("little0", refused_models={BIG: "it answers NaN"})
    found = service(*RUNNING, nodes(*ALL, inference=[refused, told("little1"), told("big-0")]))
    sentence = f"little0 on edge0 does not serve model {BIG[:12]}: it answers NaN"
    assert condition(found, ConditionType.DEGRADED) == ("True", "ModelRefused", sentence)


def test_a_service_that_is_well_again_says_so():
    found = service(*RUNNING, nodes(row("little0", "Backoff", "x"), *ALL[1:]), nodes(*ALL))
    assert condition(found, ConditionType.DEGRADED)[:2] == ("False", "Fine")


def test_what_a_silent_edge_runs_is_unknown_and_what_it_counted_stays():
    counted = nodes(*ALL, inference=[told("little0", inferences=10, sent=3, breaker="closed"), told("little1")])
    found = service(seen(), counted, nodes(*ALL, silent={"edge0"}))
    [edge, _] = found.status.edges
    assert (edge.serving, edge.cloud, edge.counts.inferences, edge.counts.sent) == (None, "", 10, 3)
    assert found.status.workers[0].state == "Unknown"


# --- what it does


def test_counters_are_kept_for_every_edge_and_summed():
    first = told("little0", inferences=10, hard=4, sent=3, fell_back=1, models={SMALL: 10}, breaker="open")
    second = told("little1", inferences=5, sent=1, bytes_sent=100)
    found = service(seen(), nodes(*ALL, inference=[first, second]))
    edges = {edge.worker: edge for edge in found.status.edges}
    assert (edges["little0"].node, edges["little0"].cloud, edges["little0"].models) == ("edge0", "open", {SMALL: 10})
    assert (edges["little0"].serving.version, edges["little1"].counts.bytes_sent) == (1, 100)
    total = found.status.counts
    assert (total.inferences, total.hard, total.sent, total.fell_back) == (15, 4, 4, 1)


def test_an_edge_whose_worker_says_nothing_now_keeps_what_it_counted():
    found = service(seen(), nodes(*ALL, inference=[told("little0", inferences=10)]), nodes(*ALL, inference=[]))
    assert found.status.counts.inferences == 10


def test_an_edge_that_is_no_longer_of_the_service_is_not_counted():
    found = service(seen(), nodes(*ALL, inference=[told("little1", inferences=10)]), seen(edges=1), nodes(*ALL))
    assert [edge.worker for edge in found.status.edges] == ["little0"]
    assert found.status.counts.inferences == 0


def test_what_most_replicas_serve_is_what_the_cloud_serves():
    rows = [*ALL[:2], *(row(f"big-{number}") for number in range(3))]
    inference = [told("big-0", "a" * 64), told("big-1"), told("big-2")]
    found = service(*RUNNING, Scaled(3, 0, "", NOW), nodes(*rows, inference=inference))
    assert found.status.cloud_serving is not None
    assert (found.status.cloud_serving.digest, found.status.replicas.ready) == (BIG, 3)


def test_what_an_edge_says_of_itself_is_bounded_and_readable():
    models = {f"{number:064x}": number for number in range(MAX_MODELS + 5)} | {"../x": 1, SMALL: -1}
    odd = told("little0", inferences=INTEGER_LIMIT, models=models, breaker="x" * 1000)
    found = service(
        seen(), nodes(row("little0", "x" * 2000, "y" * 2000), *ALL[1:], inference=[odd, told("little1", inferences=5)])
    )
    [edge, _] = found.status.edges
    assert len(edge.models) == MAX_MODELS
    assert max(edge.models.values()) == MAX_MODELS + 4
    assert found.status.counts.inferences == INTEGER_LIMIT
    assert len(found.status.workers[0].reason) == MAX_REASON


# --- replicas


def test_the_wanted_replicas_are_workers_of_the_cloud_node():
    found = service(*RUNNING, Scaled(3, 20, "requests wait", LATER))
    assert [name for name, (node, _) in places_of(found).items() if node == "cloud"] == ["big-0", "big-1", "big-2"]
    replicas = found.status.replicas
    assert (replicas.wanted, replicas.waiting, replicas.at, replicas.reason) == (3, 20, LATER, "requests wait")


def test_fewer_replicas_lose_the_highest_number():
    found = service(*RUNNING, Scaled(3, 0, "", NOW), Scaled(2, 0, "", NOW))
    assert list(places_of(found))[-1] == "big-1"


def test_another_number_of_replicas_is_a_fact_with_the_reason():
    state = service(*RUNNING)
    _, commands = step(state, Scaled(3, 20, "3 of 4: 20 requests waited", LATER))
    facts = [command.fact for command in commands if isinstance(command, Emit)]
    assert facts == [ServiceChanged(UID, "replicas", "1", "3", "3 of 4: 20 requests waited")]


def test_the_scores_of_an_edge_stand_in_its_row():
    scores = Scores("5" * 64, "b" * 64, "CloudOnly", *[(0,) * 19 + (2,)] * 3, 2)
    first = replace(told("little0"), scores=scores)
    found = service(*RUNNING, nodes(*ALL, inference=[first]))
    row = found.status.edges[0].scores
    assert row is not None
    assert (row.edge, row.cloud, row.mining, sum(row.answered), row.hard) == ("5" * 64, "b" * 64, "CloudOnly", 2, 2)
    assert found.status.edges[1].scores is None


def test_how_many_requests_wait_is_no_reason_to_say_that_the_number_changed():
    found = service(*RUNNING, Scaled(2, 0, "requests wait", NOW), Scaled(2, 7, "", LATER))
    replicas = found.status.replicas
    assert (replicas.waiting, replicas.at, replicas.reason) == (7, NOW, "requests wait")


@pytest.mark.parametrize(("replicas", "wanted"), [({"min": 2, "max": 4}, 2), ({"min": 1, "max": 1}, 1)])
def test_a_changed_spec_holds_at_once(replicas, wanted):
    found = service(*RUNNING, Scaled(wanted + 1 if wanted == 1 else 1, 0, "", NOW), seen(replicas=replicas))
    assert found.status.replicas.wanted == wanted


def test_more_than_the_spec_allows_are_never_wanted():
    assert service(*RUNNING, Scaled(99, 0, "", NOW)).status.replicas.wanted == 4


def test_a_replica_that_is_not_wanted_is_shown_until_it_has_ended():
    stopping = nodes(*ALL, row("big-1", "Stopping"))
    found = service(*RUNNING, Scaled(2, 0, "", NOW), Scaled(1, 0, "", NOW), stopping)
    assert [(worker.name, worker.state) for worker in found.status.workers][-1] == ("big-1", "Stopping")
    found = service(*RUNNING, Scaled(2, 0, "", NOW), Scaled(1, 0, "", NOW), stopping, nodes(*ALL))
    assert [worker.name for worker in found.status.workers] == ["little0", "little1", "big-0"]


# --- laws


_STATES = st.sampled_from(["Preparing", "Starting", "Running", "Backoff", "Failed", "Stopping", "Done"])
_SEEN = st.builds(
    lambda states, silent: nodes(*(row(name, state) for name, state in states.items()), silent=silent),
    st.dictionaries(st.sampled_from(["little0", "little1", "big-0", "big-1", "other"]), _STATES),
    st.sets(st.sampled_from(["edge0", "edge1", "cloud"])),
)
_EVENTS = st.one_of(
    _SEEN,
    st.builds(seen, deleted=st.sampled_from([False, False, False, True])),
    st.just(seen("a problem")),
    st.builds(Scaled, st.integers(0, 9), st.integers(0, 9), st.just("why"), st.just(NOW)),
)


@settings(deadline=None)
@given(st.lists(_EVENTS, max_size=12))
def test_whatever_is_told_phases_change_as_drawn_and_the_status_can_be_stored(history):
    state = resource()
    state, _ = step(None, seen())
    for event in history:
        found, _ = step(state, event)
        assert found.status.phase is state.status.phase or found.status.phase in TRANSITIONS[state.status.phase]
        assert type(found).from_document(found.to_document()) == found
        assert 1 <= found.status.replicas.wanted <= 4
        state = found


@settings(deadline=None)
@given(_SEEN)
def test_what_is_told_twice_changes_nothing(event):
    once = service(*RUNNING, event)
    assert step(once, event)[0] == once
