from __future__ import annotations

import math
from typing import Any

import pytest
from resource_documents import task_document

from edgeai.errors import ManifestError
from edgeai.resources.federated import FederatedTask
from edgeai.resources.parameters import KNOWN_KEYS, RoundRules, meant_key


def parameter(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}


def task(*parameters: dict[str, Any], **changes: Any) -> FederatedTask:
    return FederatedTask.from_document(task_document(*parameters, **changes))


def test_a_workers_value_stands_over_the_tasks_and_the_tasks_over_the_default() -> None:
    spec = task(
        parameter("batch size", 64), parameter("epochs", 2), worker={"parameters": [parameter("batch size", 16)]}
    ).spec
    first, second, _ = spec.training_workers
    assert [spec.parameters(worker)["batch size"] for worker in (first, second, None)] == [16, 64, 64]
    assert spec.parameters(first)["epochs"] == 2
    assert spec.parameters(first)["learning rate"] == KNOWN_KEYS["learning rate"].default


@pytest.mark.parametrize("value", ["text", 7, 1.5, True, None, [1, "a"], {"a": [None]}], ids=repr)
def test_an_unknown_key_reaches_the_worker_as_it_is(value: Any) -> None:
    spec = task(parameter("my own key", value)).spec
    reached = spec.parameters(spec.training_workers[0])["my own key"]
    assert (reached, type(reached)) == (value, type(value))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("ruonds", "rounds"),
        ("learning_rate", "learning rate"),
        ("Batch Size", "batch size"),
        ("rounds", None),
        ("dropout", None),
    ],
)
def test_a_misspelled_key_is_told_from_an_own_one(key: str, meant: str | None) -> None:
    assert meant_key(key) == meant


def test_a_null_value_is_still_there_after_storing() -> None:
    stored = task(parameter("my own key", None)).to_document()
    assert FederatedTask.from_document(stored).spec.parameters()["my own key"] is None


def test_rules_are_the_defaults_where_nothing_is_said() -> None:
    assert task().spec.rules() == RoundRules(
        rounds=10,
        min_node_number=1,
        rounds_between_validations=1,
        round_deadline_s=300.0,
        target_accuracy=None,
        task_deadline_s=None,
    )


def test_rules_are_read_from_the_tasks_parameters() -> None:
    rules = task(
        parameter("rounds", 3), parameter("min node number", 3), parameter("target accuracy", 0.9)
    ).spec.rules()
    assert (rules.rounds, rules.min_node_number, rules.target_accuracy) == (3, 3, 0.9)


@pytest.mark.parametrize("key", [key for key, known in KNOWN_KEYS.items() if known.rules_rounds])
def test_a_key_that_rules_the_rounds_is_refused_on_a_worker(key: str) -> None:
    with pytest.raises(ManifestError, match=f"'{key}' rules the rounds") as refusal:
        task(worker={"parameters": [parameter(key, 1)]})
    assert refusal.value.field == "spec.trainingWorkers[0].workerSpec.parameters[0].key"


@pytest.mark.parametrize("key", KNOWN_KEYS)
@pytest.mark.parametrize("value", ["1", True, None, [1], {}, 0, -1, -0.5, math.nan, math.inf], ids=repr)
def test_a_known_key_with_a_wrong_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ManifestError) as refusal:
        task(parameter(key, value))
    assert refusal.value.field == "spec.aggregationWorker.workerSpec.parameters[0].value"
    assert f"'{key}'" in str(refusal.value) or "must be finite" in str(refusal.value)


@pytest.mark.parametrize("key", [key for key, known in KNOWN_KEYS.items() if known.whole])
def test_a_fraction_is_refused_where_a_whole_number_is_needed(key: str) -> None:
    with pytest.raises(ManifestError, match=f"'{key}' is a whole number of at least 1, not 1.5"):
        task(parameter(key, 1.5))


def test_a_target_accuracy_above_one_is_refused() -> None:
    with pytest.raises(ManifestError, match="'target accuracy' is a number above 0 and at most 1, not 97"):
        task(parameter("target accuracy", 97))


def test_a_key_given_twice_is_refused_at_the_second() -> None:
    with pytest.raises(ManifestError, match="'rounds' is given twice") as refusal:
        task(parameter("rounds", 1), parameter("epochs", 1), parameter("rounds", 1))
    assert refusal.value.field == "spec.aggregationWorker.workerSpec.parameters[2].key"


def test_min_node_number_may_not_exceed_the_number_of_training_workers() -> None:
    with pytest.raises(ManifestError, match="'min node number' is 4, but there are only 3 training workers"):
        task(parameter("min node number", 4), workers=3)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, math.nan, math.inf, [math.nan], {"a": 2**64}, {1: 2}], ids=repr)
def test_a_value_that_not_every_reader_can_carry_is_refused(value: Any) -> None:
    with pytest.raises(ManifestError):
        task(parameter("my own key", value))
