"""How brokers and bridges do: the latest while it is fresh, unknown with its age afterwards, and when a person is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgeai.events.catalogue import Bridging, Heartbeat, LaneCounts, NodeHealth
from edgeai.lifecycle import health
from edgeai.lifecycle.health import (
    DROPS_APART_S,
    FRESH_S,
    Healths,
    bridge_lives,
    bridge_unknown,
    coordinator_document,
    health_document,
    needs,
)

BEAT = Heartbeat(100.0, broker_s=0.002, waiting=0)
TOLD = Bridging(100.0, edge_connected=True, up=LaneCounts(forwarded=50))


@pytest.fixture
def healths() -> Healths:
    found = Healths()
    found.beat("edge1", BEAT, 0.0, 1000.0)
    found.bridge("edge1", TOLD, 1000.0)
    return found


def later(told: Bridging, seconds: float, **up: int) -> Bridging:
    return replace(told, uptime_s=told.uptime_s + seconds, up=replace(told.up, **up))


def test_what_was_heard_is_known_with_its_age(healths: Healths):
    found = healths.known("edge1", 1003.0)
    assert (found.heartbeat, found.bridging) == (BEAT, TOLD)
    assert (found.heartbeat_age_s, found.bridging_age_s) == (3.0, 3.0)


def test_what_is_old_is_unknown_and_keeps_its_age(healths: Healths):
    found = healths.known("edge1", 1001.0 + FRESH_S)
    assert (found.heartbeat, found.bridging, found.skew_s) == (None, None, None)
    assert (found.heartbeat_age_s, found.bridging_age_s) == (FRESH_S + 1, FRESH_S + 1)


def test_nothing_is_known_while_nothing_can_be_heard(healths: Healths):
    found = healths.known("edge1", 1001.0, away=True)
    assert (found.heartbeat, found.bridging) == (None, None)


def test_of_a_node_that_was_never_heard_nothing_is_known(healths: Healths):
    assert healths.known("edge2", 1001.0) == NodeHealth("edge2")


def test_a_controller_that_its_broker_has_lost_is_unknown_at_once_and_its_bridge_is_not(healths: Healths):
    healths.gone("edge1")
    found = healths.known("edge1", 1001.0)
    assert (found.gone, found.heartbeat, found.bridging) == (True, None, TOLD)


def test_a_controller_that_is_heard_again_is_not_gone(healths: Healths):
    healths.gone("edge1")
    healths.beat("edge1", BEAT, 0.0, 1002.0)
    assert healths.known("edge1", 1002.0).heartbeat == BEAT


def test_rates_follow_from_two_tellings(healths: Healths):
    healths.bridge("edge1", later(TOLD, 5.0, forwarded=100), 1005.0)
    found = healths.known("edge1", 1005.0)
    assert (found.up_per_s, found.down_per_s) == (10.0, 0.0)


def test_a_bridge_that_began_anew_has_no_rate_yet(healths: Healths):
    healths.bridge("edge1", later(TOLD, 5.0, forwarded=100), 1005.0)
    healths.bridge("edge1", Bridging(1.0, edge_connected=True), 1010.0)
    assert healths.known("edge1", 1010.0).up_per_s is None


def test_messages_dropped_once_are_what_an_outage_costs(healths: Healths):
    healths.bridge("edge1", later(TOLD, 60.0, dropped_away=500), 1060.0)
    assert healths.known("edge1", 1061.0).dropping_s is None


def test_messages_dropped_again_and_again_are_told_with_their_time(healths: Healths):
    for number in (1, 2, 3):
        healths.bridge("edge1", later(TOLD, 5.0 * number, dropped_refused=number), 1000.0 + 5 * number)
    assert healths.known("edge1", 1016.0).dropping_s == 11.0


def test_a_bridge_that_has_dropped_nothing_for_a_while_drops_no_more(healths: Healths):
    for number in (1, 2):
        healths.bridge("edge1", later(TOLD, 5.0 * number, dropped_refused=number), 1000.0 + 5 * number)
    at_s = 1012.0 + DROPS_APART_S
    healths.bridge("edge1", later(TOLD, 42.0, dropped_refused=2), at_s)
    assert healths.known("edge1", at_s).dropping_s is None


@pytest.mark.parametrize(
    ("told", "news"),
    [
        (later(TOLD, 5.0, forwarded=51), False),
        (replace(TOLD, uptime_s=105.0, edge_connected=False), True),
        (replace(TOLD, uptime_s=105.0, cloud_reconnects=1), True),
        (later(TOLD, 5.0, dropped_full=1), True),
        (replace(TOLD, uptime_s=1.0), True),
    ],
    ids=["more forwarded", "broker away", "reconnect", "dropped", "began anew"],
)
def test_a_telling_is_news_when_it_tells_of_more_than_what_was_forwarded(healths: Healths, told: Bridging, news: bool):
    assert healths.bridge("edge1", told, 1005.0) is news


def test_the_node_heard_of_longest_ago_makes_room(healths: Healths, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(health, "LIMIT", 2)
    healths.beat("edge2", BEAT, 0.0, 1001.0)
    healths.beat("edge1", BEAT, 0.0, 1002.0)
    healths.beat("edge3", BEAT, 0.0, 1003.0)
    assert (len(healths), healths.known("edge2", 1003.0)) == (2, NodeHealth("edge2"))


# --- the bridge of a controller that is heard, and the other way round


def test_a_bridge_lives_when_the_controller_is_heard_through_it():
    found = NodeHealth("edge1", heartbeat=BEAT, heartbeat_age_s=1.0, bridging_age_s=200.0)
    assert bridge_lives(found) is True
    assert (
        bridge_unknown(found)
        == "it forwards what the controller says and tells nothing of itself: last heard 3 min ago"
    )


def test_of_a_bridge_that_is_not_heard_nobody_says_that_it_lives():
    found = NodeHealth("edge1", bridging_age_s=200.0)
    assert (bridge_lives(found), bridge_unknown(found)) == (None, "last heard 3 min ago")
    assert health_document(found)["bridge"]["up"] is None


def test_a_bridge_that_is_heard_alone_lives_and_the_controller_is_silent():
    found = NodeHealth("edge1", heartbeat_age_s=34.0, bridging=TOLD, bridging_age_s=1.0)
    assert needs(found) == (
        "the bridge of edge1 lives, the controller is silent for 34 s: see the log of `edgeai edge` there",
    )


# --- who needs a person

WELL = NodeHealth("edge1", heartbeat=BEAT, heartbeat_age_s=1.0, skew_s=0.1, bridging=TOLD, bridging_age_s=1.0)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (replace(WELL, heartbeat=None, bridging=replace(TOLD, edge_connected=False)), "the node's broker is away"),
        (replace(WELL, heartbeat=replace(BEAT, broker_s=None, broker_silent=True)), "brings none back"),
        (replace(WELL, heartbeat=replace(BEAT, broker_s=1.5)), "the broker of edge1 takes 1.5 s"),
        (replace(WELL, heartbeat=replace(BEAT, outbox=1234)), "edge1 holds 1,234 facts"),
        (replace(WELL, skew_s=7.0), "the clock of edge1 is 7 s behind this one"),
        (replace(WELL, skew_s=-7.0), "the clock of edge1 is 7 s ahead of this one"),
        (replace(WELL, dropping_s=65.0), "the bridge of edge1 drops messages for 1 min"),
        (
            NodeHealth("cloud/coordinator", heartbeat=replace(BEAT, waiting=5000), crowded_s=61.0),
            "the coordinator has had more than 1,000 messages waiting for 1 min, now 5,000",
        ),
    ],
    ids=["broker away", "broker silent", "broker slow", "outbox", "clock behind", "clock ahead", "dropping", "facts"],
)
def test_who_needs_a_person_says_so_in_one_sentence(found: NodeHealth, words: str):
    [sentence] = needs(found)
    assert words in sentence


def test_all_is_well_without_a_sentence():
    assert needs(WELL) == ()


def test_many_that_wait_for_a_moment_need_nobody():
    healths = Healths()
    for at_s in (1000.0, 1050.0):
        healths.beat("edge1", replace(BEAT, waiting=5000), 0.0, at_s)
    assert needs(healths.known("edge1", 1050.0)) == ()
    healths.beat("edge1", replace(BEAT, waiting=5000), 0.0, 1061.0)
    assert len(needs(healths.known("edge1", 1061.0))) == 1


def test_a_sender_that_does_not_measure_its_broker_leaves_it_unknown():
    found = health_document(NodeHealth("edge1", heartbeat=Heartbeat(1.0), heartbeat_age_s=1.0))
    assert found["broker"] == {"known": False, "age_s": 1.0, "answers": None, "round_trip_s": None}
    assert found["attention"] == []


def test_the_cloud_has_no_bridge():
    assert health_document(NodeHealth("cloud", heartbeat=BEAT))["bridge"] is None


def test_a_document_has_the_same_keys_whatever_is_known():
    assert health_document(WELL).keys() == health_document(NodeHealth("edge1")).keys()
    assert health_document(WELL)["bridge"].keys() == health_document(NodeHealth("edge1"))["bridge"].keys()
    coordinator = NodeHealth("cloud/coordinator", heartbeat=replace(BEAT, store_bytes=10))
    assert coordinator_document(coordinator).keys() == coordinator_document(NodeHealth("cloud/coordinator")).keys()
