from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from resource_documents import model_document, resources, task_document
from yaml.reader import Reader

from edgeai.errors import ManifestError
from edgeai.resources.base import Resource
from edgeai.resources.federated import FederatedTask
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.joint import JointInferenceService
from edgeai.resources.manifest import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_EVENTS,
    dump_manifests,
    field_lines,
    load_manifests,
    read_manifests,
)
from edgeai.resources.model import Model

EXAMPLES = Path(__file__).parents[3] / "config" / "examples"
# What JSON lets stand in text and YAML refuses (DEL, C1 controls, ...) or reads as the end of a line.
UNLIKE_JSON = re.compile(Reader.NON_PRINTABLE.pattern + "|[\x85\u2028\u2029\ufeff]")
MODEL = """\
apiVersion: edgeai.io/v1alpha1
kind: Model
metadata:
  name: cnn
spec: {}
"""


def task_with(value: str) -> str:
    """A task's manifest in which the parameter `mine` has this value, as YAML."""
    return yaml.safe_dump(task_document({"key": "mine", "value": "VALUE"})).replace("VALUE", value)


def value_of(text: str) -> Any:
    [task] = load_manifests(text, "task.yaml")
    assert isinstance(task, FederatedTask)
    return task.spec.parameters()["mine"]


def refusal_of(text: str) -> ManifestError:
    with pytest.raises(ManifestError) as refusal:
        load_manifests(text, "task.yaml")
    assert "\n" not in str(refusal.value)
    return refusal.value


@settings(deadline=None)
@given(resources)
def test_a_resource_written_as_json_is_read_back(resource: Resource) -> None:
    text = json.dumps(resource.to_document(), ensure_ascii=False)
    assume(not UNLIKE_JSON.search(text))
    assert load_manifests(text, "x") == [resource]


@settings(deadline=None)
@given(resources)
def test_a_resource_written_as_yaml_is_read_back(resource: Resource) -> None:
    assert load_manifests(dump_manifests([resource.to_document()]), "x") == [resource]


@settings(deadline=None)
@given(st.text())
@example("\ud800")
@example("\ufeff")
@example("a: =")
@example("? ? ?")
@example("%YAML 9.9\n---\na")
@example("0x_: 0b_")
@example("- 9" * 99)
@example("1" * 5000)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        load_manifests(text, "x")
    except ManifestError as error:
        assert "\n" not in str(error)  # noqa: PT017


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="{}[]:,&*!|>-?#'\"\\%@`~<=\n\t ab0129._+kindMoel", max_size=40), st.data())
def test_a_manifest_with_any_damage_is_read_or_refused(damage: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(MODEL)))
    end = data.draw(st.integers(start, min(len(MODEL), start + 5)))
    try:
        load_manifests(MODEL[:start] + damage + MODEL[end:], "x")
    except ManifestError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_models_and_a_task_on_existing_scripts(path: Path) -> None:
    *others, task = read_manifests(path)
    model, *more = [other for other in others if isinstance(other, Model)]
    if isinstance(task, JointInferenceService):
        served = [*(worker.model for worker in task.spec.edge_workers), task.spec.cloud_worker.model]
        assert [each.name for each in (model, *more)] == [each.name for each in served if each is not None]
        assert all((path.parent / str(each.spec.url)).is_file() for each in (model, *more))
        scripts = [(spec.script_dir, spec.script_boot_file) for spec in task.spec.worker_specs().values()]
    elif isinstance(task, IncrementalLearningJob):
        assert (task.spec.initial_model.name, task.spec.output_model.name) == (model.name, model.name)
        assert (path.parent / str(model.spec.url)).is_file()
        scripts = [(spec.script_dir, spec.script_boot_file) for spec in task.spec.worker_specs().values()]
    else:
        assert isinstance(task, FederatedTask)
        assert task.spec.aggregation_worker.model.name == model.name
        specs = [worker.worker_spec for worker in task.spec.training_workers]
        scripts = [(spec.train_script_dir, spec.train_script_boot_file) for spec in specs]
    assert all((path.parent / folder / boot_file).is_file() for folder, boot_file in scripts)


def test_several_documents_are_read_in_order_and_empty_ones_skipped() -> None:
    text = f"---\n---\n{MODEL}---\n# nothing\n---\n{MODEL.replace('cnn', 'mlp')}"
    assert [resource.name for resource in load_manifests(text, "x")] == ["cnn", "mlp"]


@pytest.mark.parametrize("text", ["", "   \n", "# only a comment", "---\n---\n", "null"], ids=repr)
def test_a_file_without_a_resource_is_refused(text: str) -> None:
    assert str(refusal_of(text)) == "task.yaml: there is no resource in this file"


def test_the_same_resource_twice_is_refused_at_the_second() -> None:
    error = refusal_of(f"{MODEL}---\n{MODEL}")
    assert str(error) == "task.yaml:7: Model cnn stands twice in this file"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", False),
        ("'no'", "no"),
        ("on", True),
        ("~", None),
        ("0o17", "0o17"),
        ("017", 15),
        ("1_000", 1000),
        ("1.5", 1.5),
        ("1e-3", 0.001),
        ("-1.5E+3", -1500.0),
        ("'1e3'", "1e3"),
        ("e3", "e3"),
        ("2030-01-31", "2030-01-31"),
        ("2030-01-31T12:00:00Z", "2030-01-31T12:00:00Z"),
        ("=", "="),
        ("<<", "<<"),
        ("[1, a]", [1, "a"]),
    ],
)
def test_a_plain_value_means_what_yaml_says_except_that_dates_stay_text(written: str, value: Any) -> None:
    read = value_of(task_with(written))
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MODEL.replace("spec: {}", "spec: &a {}"), "task.yaml:5: spec: anchors and aliases"),
        (MODEL.replace("spec: {}", "spec: *a"), "task.yaml:5: spec: anchors and aliases"),
        (MODEL.replace("spec:", "&a spec:"), "task.yaml:5: anchors and aliases"),
        (MODEL.replace("spec: {}", "spec: !!map {}"), "task.yaml:5: spec: tags"),
        (MODEL.replace("cnn", "!!python/name:os.system ''"), "task.yaml:4: metadata.name: tags"),
        (MODEL.replace("cnn", "! cnn"), "task.yaml:4: metadata.name: tags (!) are not allowed"),
        (MODEL + "kind: Dataset\n", "task.yaml:6: kind: duplicate key, first on line 2"),
        (
            MODEL.replace("  name: cnn", "  name: cnn\n  'name': b"),
            "task.yaml:5: metadata.name: duplicate key, first on line 4",
        ),
        (MODEL + "1: x\n", "task.yaml:6: the key '1' is not text"),
        (MODEL + "no: x\n", "task.yaml:6: the key 'no' is not text"),
        (MODEL + "~: x\n", "task.yaml:6: the key '~' is not text"),
        (MODEL + "<<: {spec: {}}\n", "task.yaml:6: the key '<<' is not text"),
        (MODEL + "[a]: x\n", "task.yaml:6: a list or map cannot be a key"),
        (MODEL + "x: " + "9" * 30 + "\n", "task.yaml:6: x: unknown field"),
        (MODEL + "x: " + "9" * 5000 + "\n", "task.yaml:6: x: '999"),
        (MODEL + "x: 0b_\n", "task.yaml:6: x: '0b_' is not a number that fits"),
        (MODEL + "x: [\n", "task.yaml:7: not valid YAML: "),
        (MODEL + "x: \x07\n", "task.yaml: not valid YAML: "),
        (MODEL + "x: 1\n", "task.yaml:6: x: unknown field"),
        (MODEL.replace("kind: Model", "kind: Pod"), "task.yaml:2: kind: 'Pod' is not a known kind"),
        (MODEL.replace("v1alpha1", "v2"), "task.yaml:1: apiVersion: must be edgeai.io/v1alpha1"),
        (
            MODEL.replace("kind: Model\n", "kind: FederatedTask\n"),
            "task.yaml:5: spec.aggregationWorker: this field is required",
        ),
        (MODEL.replace("  name: cnn", "  name: C N N"), "task.yaml:4: metadata.name: a name has"),
        (f"{MODEL}---\n{MODEL}x: 1\n", "task.yaml:12: x: unknown field"),
        ("- 1\n", "task.yaml:1: a resource is a map of fields, not a list"),
        ("\nhello\n", "task.yaml:2: a resource is a map of fields, not 'hello'"),
    ],
)
def test_bad_yaml_is_refused_with_file_line_and_field(text: str, message: str) -> None:
    assert str(refusal_of(text)).startswith(message)


def test_the_first_error_by_line_is_raised_and_the_others_are_counted() -> None:
    error = refusal_of(MODEL.replace("spec: {}", "x: 1\ny: 2\nspec: {z: 3}"))
    assert str(error) == "task.yaml:5: x: unknown field (and 2 more)"
    assert (error.file, error.line, error.field) == ("task.yaml", 5, "x")
    assert [str(other) for other in error.others] == [
        "task.yaml:6: y: unknown field",
        "task.yaml:7: spec.z: unknown field",
    ]


def test_errors_of_several_documents_are_found_at_once_up_to_what_is_no_yaml() -> None:
    error = refusal_of(f"{MODEL}x: 1\n---\n{MODEL.replace('kind: Model', 'kind: Pod')}---\n[\n")
    assert (error.line, error.others[0].line) == (6, 9)
    assert error.others[-1].what.startswith("not valid YAML")


def test_the_line_of_a_field_is_found_in_the_resource_that_it_belongs_to() -> None:
    lines = field_lines(MODEL + "---\n" + MODEL.replace("name: cnn", "name: other"))
    assert [lines["Model", name]["metadata.name"] for name in ("cnn", "other")] == [4, 10]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("trainScriptBootFile", "trainScriptBootfile"),
        ("frameworkType", "framework_type"),
        ("nodeName", "nodename"),
        ("aggregationAlgorithm", "agregationAlgorithm"),
    ],
)
def test_a_misspelled_field_is_named_rather_than_the_one_that_is_missing(right: str, wrong: str) -> None:
    text = json.dumps(task_document(), indent=1).replace(f'"{right}"', f'"{wrong}"')
    line = next(number for number, row in enumerate(text.splitlines(), 1) if wrong in row)
    error = refusal_of(text)
    assert (error.line, error.field.rpartition(".")[2]) == (line, wrong)
    assert f"unknown field; did you mean {right}?" in error.what


def test_an_optional_field_that_was_misspelled_is_guessed_as_well() -> None:
    assert "did you mean labels?" in refusal_of(MODEL.replace("name: cnn", "name: cnn\n  lables: {}")).what


def test_what_resembles_no_field_is_not_guessed() -> None:
    assert refusal_of(MODEL + "zzz: 1\n").what == "unknown field"


def test_json_is_refused_with_a_line_too() -> None:
    text = json.dumps(model_document(format="pickle"), indent=2)
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "pickle" in row)
    assert str(refusal_of(text)).startswith(f"task.yaml:{line}: spec.format: 'pickle' is not known here")


def test_what_is_wrong_with_the_only_item_of_a_list_is_said_instead_of_that_it_lacks_one() -> None:
    text = """
apiVersion: edgeai.io/v1alpha1
kind: JointInferenceService
metadata: {name: digits}
spec:
  edgeWorkers:
    - name: little
      nodeName: edge1
      workerSpec: {scriptDir: w, scriptBootFile: main.py, frameworkType: numpy}
      hardExampleMining: {algorithm: Margn}
  cloudWorker: {name: big, workerSpec: {scriptDir: w, scriptBootFile: main.py, frameworkType: numpy}}
"""
    refusal = str(refusal_of(text))
    assert refusal.startswith("task.yaml:10: spec.edgeWorkers[0].hardExampleMining.algorithm: 'Margn'")
    assert " more)" not in refusal


@pytest.mark.parametrize("opening", ["[", "{a: "], ids=["list", "map"])
def test_nesting_is_bounded(opening: str) -> None:
    assert f"nested deeper than {MAX_DEPTH} levels" in str(refusal_of("x: " + opening * 10_000))


def test_a_value_as_deep_as_the_limit_is_read() -> None:
    inside = MAX_DEPTH - len(["", "spec", "aggregationWorker", "workerSpec", "parameters", "0"])
    assert value_of(task_with("[" * inside + "]" * inside))
    assert "nested deeper" in str(refusal_of(task_with("[" * (inside + 1) + "]" * (inside + 1))))


def test_the_number_of_values_is_bounded() -> None:
    assert "too many fields and values" in str(refusal_of("x: [" + "1," * MAX_EVENTS + "]"))


@pytest.mark.parametrize("text", ["#" * (MAX_BYTES + 1), "#" + "é" * (MAX_BYTES // 2)], ids=["ascii", "two bytes each"])
def test_a_text_over_the_limit_is_refused(text: str) -> None:
    assert str(refusal_of(text)) == "task.yaml: is larger than 256 KB"


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(MODEL + "#" * (MAX_BYTES - len(MODEL)))
    assert [resource.name for resource in read_manifests(path)] == ["cnn"]


def test_a_large_file_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.touch()
    os.truncate(path, 1 << 40)  # a terabyte of nothing: reading it would not end
    with pytest.raises(ManifestError, match=r"large\.yaml: is larger than 256 KB"):
        read_manifests(path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="is not UTF-8 text"):
        read_manifests(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="does not exist"):
        read_manifests(tmp_path / "none.yaml")


def test_a_folder_or_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(ManifestError, match="is not a file"):
            read_manifests(path)
