"""IncrementalLearningJob: what may be asked, what is refused at which field, and its schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeai.errors import ManifestError
from edgeai.resources.incremental import (
    MAX_COMPARISONS,
    MAX_DEPTH,
    HardExampleMining,
    IncrementalLearningJob,
    TriggerCondition,
)
from edgeai.resources.kinds import from_document
from edgeai.resources.mining import MiningAlgorithm
from edgeai.resources.schema import RECURSION, crd, json_schema

WORKER = "{scriptDir: ./incremental, scriptBootFile: main.py, frameworkType: numpy}"
ISSUE = f"""
apiVersion: edgeai.io/v1alpha1
kind: IncrementalLearningJob
metadata: {{name: digits}}
spec:
  nodeName: edge1
  initialModel: {{name: digits}}
  outputModel: {{name: digits}}
  dataset: {{name: digits-stream, trainFraction: 0.8}}
  hardExampleMining: {{algorithm: CrossEntropy, parameters: [{{key: threshold, value: 0.5}}]}}
  train:
    workerSpec: {WORKER}
    trigger:
      condition: {{metric: num_of_samples, operator: ">=", threshold: 200}}
      window: {{start: "02:00", end: "06:00"}}
      checkPeriodSeconds: 60
  eval: {{workerSpec: {WORKER}}}
  deploy:
    workerSpec: {WORKER}
    trigger: {{condition: {{metric: accuracy_delta, operator: ">", threshold: 0.01}}}}
"""
LEAF = {"metric": "loss", "operator": "<", "threshold": 1}


def document(*path: str, **change: Any) -> dict[str, Any]:
    """The example of the issue, with fields of the object at `path` (below spec) replaced; None removes one."""
    found: dict[str, Any] = yaml.safe_load(ISSUE)
    place = found["spec"]
    for part in path:
        place = place[part]
    place.update(change)
    for name in [name for name, value in change.items() if value is None]:
        del place[name]
    return found


def job(*path: str, **change: Any) -> IncrementalLearningJob:
    return IncrementalLearningJob.from_document(document(*path, **change))


def refusal(*path: str, **change: Any) -> str:
    with pytest.raises(ManifestError) as refused:
        job(*path, **change)
    return str(refused.value).removeprefix("spec.")


# --- what may be asked


def test_the_example_of_the_issue_is_accepted():
    spec = job().spec
    assert (spec.node_name, spec.dataset.train_fraction) == ("edge1", 0.8)
    assert spec.train.trigger.condition == TriggerCondition(metric="num_of_samples", operator=">=", threshold=200)
    assert spec.hard_example_mining.values() == {"threshold": 0.5}


def test_a_document_leads_back_to_the_job():
    mine = job()
    assert from_document(json.loads(json.dumps(mine.to_document()))) == mine


def test_a_spec_as_json_leads_back_to_the_spec():
    spec = job().spec
    text = spec.model_dump_json(by_alias=True, exclude_none=True)
    assert type(spec).model_validate_json(text, by_alias=True, by_name=False) == spec


def test_what_is_not_said_has_a_default():
    found = document(hardExampleMining=None)
    del found["spec"]["train"]["trigger"], found["spec"]["deploy"]["trigger"], found["spec"]["dataset"]["trainFraction"]
    spec = IncrementalLearningJob.from_document(found).spec
    assert spec.hard_example_mining.algorithm is MiningAlgorithm.CROSS_ENTROPY
    assert (spec.train.trigger.condition, spec.train.trigger.check_period_seconds) == (None, 60)
    assert (spec.dataset.train_fraction, spec.dataset.initial_samples, spec.keep.max_versions) == (0.8, "old", 10)


def test_workers_are_named_by_their_stage():
    assert set(job().spec.worker_specs()) == {"train", "eval", "deploy"}


def test_a_worker_has_its_own_parameters():
    mine = job("train", "workerSpec", parameters=[{"key": "epochs", "value": 3}])
    assert (mine.spec.parameters("train")["epochs"], mine.spec.parameters("eval")["epochs"]) == (3, 1)


def test_a_new_job_is_pending():
    assert job().status.phase == "Pending"


# --- what is refused, and where


@pytest.mark.parametrize("name", ["nodeName", "initialModel", "outputModel", "dataset", "train", "eval", "deploy"])
def test_what_a_job_cannot_do_without_is_required(name):
    assert refusal(**{name: None}) == f"{name}: this field is required"


@pytest.mark.parametrize(
    ("path", "change", "what"),
    [
        ((), {"nodeName": "Edge 1"}, "nodeName: a name has"),
        ((), {"trainWorker": {}}, "trainWorker: unknown field"),
        ((), {"paused": "yes"}, "paused: must be true or false"),
        (("initialModel",), {"name": 7}, "initialModel.name: must be text"),
        (("dataset",), {"trainFraction": 0}, "dataset.trainFraction: input should be greater than 0"),
        (("dataset",), {"trainFraction": 1}, "dataset.trainFraction: input should be less than 1"),
        (("dataset",), {"trainFraction": "0.8"}, "dataset.trainFraction: must be a number, not '0.8'"),
        (("dataset",), {"initialSamples": "all"}, "dataset.initialSamples: must be 'old' or 'new', not 'all'"),
        (("dataset",), {"labelsUrl": "labels.jsonl"}, "dataset.labelsUrl: "),
        (("train", "workerSpec"), {"scriptDir": ""}, "train.workerSpec.scriptDir: "),
        (
            ("train", "workerSpec"),
            {"scriptBootFile": "../main.py"},
            "train.workerSpec.scriptBootFile: '../main.py' is not a file inside scriptDir",
        ),
        (("eval", "workerSpec"), {"frameworkType": "Tensor Flow"}, "eval.workerSpec.frameworkType: "),
        (("eval", "workerSpec"), {"frameworkVersion": "new"}, "eval.workerSpec.frameworkVersion: 'new' is not a"),
        (
            ("deploy", "workerSpec"),
            {"parameters": [{"key": "epochs", "value": 0}]},
            "deploy.workerSpec.parameters[0].value: 'epochs' is a whole number",
        ),
        (("train", "trigger"), {"checkPeriodSeconds": 0}, "train.trigger.checkPeriodSeconds: "),
        (("train", "trigger", "window"), {"start": "2:00"}, "train.trigger.window.start: '2:00' is not a time of day"),
        (("train", "trigger", "window"), {"end": "24:00"}, "train.trigger.window.end: '24:00' is not a time of day"),
        (("train", "trigger", "window"), {"end": 360}, "train.trigger.window.end: must be text"),
        (("train", "trigger", "window"), {"end": None}, "train.trigger.window.end: this field is required"),
        (("deploy", "trigger"), {"window": {"start": "01:00", "end": "02:00"}}, "deploy.trigger.window: unknown field"),
    ],
)
def test_a_wrong_field_is_named(path, change, what):
    assert refusal(*path, **change).startswith(what)


@pytest.mark.parametrize(
    ("condition", "what"),
    [
        ({}, ": a condition is a metric with operator and threshold, or all: [...], or any: [...]"),
        ({"metric": "loss"}, ".operator: a condition on a metric needs operator"),
        ({"metric": "loss", "operator": "<"}, ".threshold: a condition on a metric needs threshold"),
        ({**LEAF, "operator": "=<"}, ".operator: must be"),
        ({**LEAF, "threshold": "1"}, ".threshold: must be a number, not '1'"),
        ({**LEAF, "threshold": True}, ".threshold: must be a number, not true"),
        ({**LEAF, "threshold": float("inf")}, ".threshold: must be a finite number"),
        ({**LEAF, "all": [LEAF]}, ": a condition is a metric"),
        ({"all": [LEAF], "any": [LEAF]}, ": a condition is a metric"),
        ({"all": []}, ".all: at least one condition is needed"),
        ({"any": [LEAF], "threshold": 1}, ".any: any stands alone"),
        ({"any": [LEAF, {"metric": "loss"}]}, ".any[1].operator: a condition on a metric needs operator"),
        ({"all": [{"any": [{**LEAF, "labels": "3"}]}]}, ".all[0].any[0].labels: unknown field"),
        ({"all": {"metric": "loss"}}, ".all: must be a list"),
        ({"any": [LEAF] * (MAX_COMPARISONS + 1)}, f": a trigger has at most {MAX_COMPARISONS} comparisons"),
    ],
)
def test_a_wrong_condition_is_named_at_its_field(condition, what):
    assert refusal("train", "trigger", condition=condition).startswith(f"train.trigger.condition{what}")


def nested(depth: int) -> dict[str, Any]:
    return LEAF if depth == 1 else {"all" if depth % 2 else "any": [nested(depth - 1)]}


def test_conditions_are_nested_up_to_a_limit():
    assert job("deploy", "trigger", condition=nested(MAX_DEPTH)).spec.deploy.trigger.condition is not None
    assert "are nested at most 7 deep" in refusal("deploy", "trigger", condition=nested(MAX_DEPTH + 1))


def test_conditions_nested_beyond_all_measure_are_refused_too():
    assert refusal("deploy", "trigger", condition=nested(400)).startswith("deploy.trigger.condition")


def test_as_many_comparisons_as_are_allowed_are_accepted():
    condition = job("train", "trigger", condition={"any": [LEAF] * MAX_COMPARISONS}).spec.train.trigger.condition
    assert condition is not None
    assert condition.leaves() == MAX_COMPARISONS


# --- mining


@pytest.mark.parametrize(
    ("algorithm", "parameters", "what"),
    [
        ("Cross", [], "algorithm: 'Cross' is not known here; there is "),
        ("Margin", [("threshold", 2)], "parameters[0].value: Margin: 'threshold' is a number from 0 to 1, not 2"),
        ("Random", [("rate", 0.1), ("seed", 0.5)], "parameters[1].value: Random: 'seed' is a whole number"),
        ("IBT", [("treshold_img", 0.1)], "parameters[0].key: 'treshold_img' is not a parameter of IBT; did you mean"),
        ("IBT", [("threshold", 0.1), ("threshold_box", 0.2)], "parameters[1].key: 'threshold_box' means the same"),
        ("Margin", [("threshold", 0.1), ("threshold", 0.2)], "parameters[1].key: 'threshold' is given twice"),
        ("EdgeOnly", [("threshold", 0.1)], "parameters[0].key: 'threshold' is not a parameter of EdgeOnly"),
        ("Custom", [], "parameters: Custom needs the parameter 'entry point'"),
        ("Custom", [("entry point", "mine")], "parameters[0].value: Custom: 'entry point' is `module:function`"),
    ],
)
def test_a_wrong_parameter_of_mining_is_named_at_its_field(algorithm, parameters, what):
    listed = [{"key": key, "value": value} for key, value in parameters]
    found = refusal(hardExampleMining={"algorithm": algorithm, "parameters": listed})
    assert found.startswith(f"hardExampleMining.{what}")


@pytest.mark.parametrize("algorithm", [each for each in MiningAlgorithm if each is not MiningAlgorithm.CUSTOM])
def test_every_algorithm_works_without_parameters(algorithm):
    assert HardExampleMining(algorithm=algorithm).values() == {}


def test_a_users_own_function_has_parameters_of_its_own():
    listed = [{"key": "entry point", "value": "mine:hard"}, {"key": "mine", "value": [1, 2]}]
    mining = job(hardExampleMining={"algorithm": "Custom", "parameters": listed}).spec.hard_example_mining
    assert mining.values() == {"entry point": "mine:hard", "mine": [1, 2]}


# --- any job


conditions = st.recursive(
    st.fixed_dictionaries(
        {
            "metric": st.sampled_from(["num_of_samples", "accuracy", "accuracy_delta"]),
            "operator": st.sampled_from([">", ">=", "<", "<=", "==", "!="]),
            "threshold": st.integers(-1000, 1000) | st.floats(-1, 1),
        },
        optional={"label": st.sampled_from(["0", "cat"])},
    ),
    lambda inner: st.sampled_from(["all", "any"]).flatmap(
        lambda word: st.lists(inner, min_size=1, max_size=3).map(lambda parts: {word: parts})
    ),
    max_leaves=5,
)


@settings(deadline=None)
@given(conditions)
def test_a_condition_leads_back_to_itself(condition):
    mine = TriggerCondition.model_validate(condition)
    document = json.loads(json.dumps(mine.model_dump(mode="json", by_alias=True, exclude_none=True)))
    assert TriggerCondition.model_validate(document, by_alias=True, by_name=False) == mine


# --- schemas


def trigger_schema(*path: str) -> dict[str, Any]:
    [version] = crd("IncrementalLearningJob")["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    for part in ("spec", *path):
        found = found["properties"][part]
    return deepcopy(found)


def ways_down(condition: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every condition inside another one, with its depth."""
    for word in ("all", "any"):
        inner = condition.get("properties", {}).get(word, {}).get("items")
        if inner is not None:
            yield 1, inner
            yield from ((depth + 1, each) for depth, each in ways_down(inner))


def test_a_condition_is_written_out_some_levels_deep_and_may_hold_anything_below():
    found = list(ways_down(trigger_schema("train", "trigger", "condition")))
    assert max(depth for depth, _ in found) == RECURSION + 1
    for depth, inner in found:
        assert ("metric" in inner.get("properties", {})) is (depth <= RECURSION)
        assert inner.get("x-kubernetes-preserve-unknown-fields", False) is (depth > RECURSION)


def test_an_object_that_may_be_left_out_says_what_it_holds():
    window = trigger_schema("train", "trigger", "window")
    assert (window["type"], window["nullable"], window["required"]) == ("object", True, ["start", "end"])


def test_a_definition_with_conditions_stays_small():
    assert len(json.dumps(crd("IncrementalLearningJob"))) < 100_000


def test_the_json_schema_refers_from_conditions_to_conditions():
    condition = json_schema()["$defs"]["TriggerCondition"]
    [listed, nothing] = condition["properties"]["all"]["anyOf"]
    assert (listed["items"], nothing) == ({"$ref": "#/$defs/TriggerCondition"}, {"type": "null"})


def test_every_reference_of_the_json_schema_leads_somewhere():
    schema = json_schema()
    text = json.dumps(schema)
    names = {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert names <= schema["$defs"].keys()
