"""Train and eval workers of an incremental learning job: what a script is given, and the report that it leaves on disk."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from edgeai.errors import DamagedFile, ModelError, NotFound, Refused, UpdateError
from edgeai.events.catalogue import Assignment, BlobRef, ModelFile, Role, StageWork
from edgeai.launcher.slots import ResultFile, SessionFile, SlotDir, SlotFile
from edgeai.store.arrays import ArrayFile, write_arrays
from edgeai.store.files import digest_of
from edgeai.worker import task as tasks
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.stage import StageRun
from edgeai.worker.task import Task

UID, TASK, RUN = "0123abcd" * 4, "digits-0123abcd", "3.1"


def model_in(slot: SlotDir, value: float) -> ModelFile:
    path = slot.models / "beside"
    digest, size_bytes = write_arrays(path, [np.full((2, 2), value, "float32")])
    path.replace(slot.model(digest))
    return ModelFile(f"{digest}.safetensors", BlobRef(digest, size_bytes))


def snapshot_in(folder: Path) -> Path:
    folder.mkdir()
    for part, values in {"old": [0, 1], "new": [5], "eval": [7, 8]}.items():
        np.savez(folder / f"{part}.npz", x=np.array(values, "float32"), y=np.array(values))
    (folder / "snapshot.json").write_text(json.dumps({"format": "npz"}))
    return folder


def slot_for(folder: Path, role: Role, *values: float, dataset: Path | None = None) -> SlotDir:
    slot = SlotDir(folder)
    slot.create()
    work = StageWork(3, RUN, "a" * 64, tuple(model_in(slot, value) for value in values))
    assignment = Assignment(TASK, "digits", UID, 1, role.value, role, dataset="stream", work=work)
    slot.write_slot(SlotFile("edge1", assignment, str(dataset) if dataset else ""))
    return slot


async def joined(slot: SlotDir) -> Task:
    role = slot.read_slot().assignment.role.value
    run = StageRun(WorkerEnvironment(TASK, role, "edge1", "", "", slot))
    await run.begin()
    return Task(run)


@pytest.fixture
async def train(tmp_path: Path) -> Task:
    return await joined(slot_for(tmp_path / "slot", Role.TRAIN, 1.0, dataset=snapshot_in(tmp_path / "snapshot")))


@pytest.fixture
async def evaluation(tmp_path: Path) -> Task:
    return await joined(slot_for(tmp_path / "slot", Role.EVAL, 2.0, 1.0))


def slot_of(task: Task) -> SlotDir:
    return SlotDir(task.output_dir.parent)


# --- what a script is given


def test_training_examples_are_the_old_and_then_the_new(train):
    assert train.dataset.load("train")["y"].tolist() == [0, 1, 5]


@pytest.mark.parametrize(("part", "values"), [("old", [0, 1]), ("new", [5]), ("eval", [7, 8])])
def test_a_part_of_the_snapshot_is_loaded_by_name(train, part, values):
    assert train.dataset.load(part)["x"].tolist() == values


def test_parts_are_paths_too(train):
    found = [train.dataset.old, train.dataset.new, train.dataset.eval]
    assert [path.name for path in found] == ["old.npz", "new.npz", "eval.npz"]


def test_a_part_that_is_none_is_refused(train):
    with pytest.raises(Refused, match="is loaded by part, one of train, old, new, eval"):
        train.dataset.load("test")


def test_a_part_that_is_missing_is_not_found(train):
    train.dataset.eval.unlink()
    with pytest.raises(NotFound):
        train.dataset.load("eval")


def test_an_empty_part_changes_nothing(train):
    np.savez(train.dataset.new, x=np.zeros((0,), "float32"), y=np.zeros((0,), "int64"))
    assert train.dataset.load("train")["y"].tolist() == [0, 1]


def test_numbers_in_csv_are_numbers_and_the_rest_is_text(train):
    for part in ("old", "new"):
        getattr(train.dataset, part).unlink()
    (train.dataset.path / "old.csv").write_text("size,weight,name\n1,0.5,a\n2,1,b\n")
    (train.dataset.path / "new.csv").write_text("size,weight,name\n3,2,7\n")
    found = train.dataset.load("train")
    assert {name: column.tolist() for name, column in found.items()} == {
        "size": [1, 2, 3],
        "weight": [0.5, 1.0, 2.0],
        "name": ["a", "b", "7"],
    }


def test_lists_in_jsonl_are_rows_of_an_array(train):
    train.dataset.eval.unlink()
    (train.dataset.path / "eval.jsonl").write_text('{"x": [1, 2], "y": "a"}\n{"x": [3, 4], "y": "b"}\n')
    found = train.dataset.load("eval")
    assert (found["x"].tolist(), found["y"].tolist()) == ([[1, 2], [3, 4]], ["a", "b"])


@pytest.mark.parametrize("text", ['{"x": [1]}\n{"x": [1, 2]}\n', '{"x": 1}\n[2]\n', '{"x": 1}\n{"y": 2}\n', "{"])
def test_rows_that_make_no_arrays_are_refused(train, text):
    train.dataset.eval.unlink()
    (train.dataset.path / "eval.jsonl").write_text(text)
    with pytest.raises(Refused, match="cannot be read as jsonl"):
        train.dataset.load("eval")


def test_pickled_objects_are_refused(train):
    np.savez(train.dataset.eval, x=np.array([{}], object))
    with pytest.raises(Refused, match="cannot be read as npz"):
        train.dataset.load("eval")


def test_a_train_worker_starts_from_the_serving_model(train):
    assert train.base_model.load()[0].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_train_worker_knows_its_round(train):
    assert (train.role, train.round) == ("train", 3)


def test_an_npz_model_is_its_arrays_in_the_order_of_the_file(train):
    np.savez(train.output_dir / "m.npz", b=np.ones(2), a=np.zeros(1))
    model = tasks.LocalModel(train.output_dir / "m.npz", "npz", "0" * 64)
    assert [array.tolist() for array in model.load()] == [[1.0, 1.0], [0.0]]


def broken_archive() -> bytes:
    whole = io.BytesIO()
    np.savez(whole, a=np.ones(100))
    return whole.getvalue()[:200]


def archive_of_objects() -> bytes:
    whole = io.BytesIO()
    np.savez(whole, a=np.array([{}], dtype=object))
    return whole.getvalue()


@pytest.mark.parametrize(
    "content",
    [pickle.dumps([1.0]), b"", broken_archive(), archive_of_objects()],
    ids=["pickle", "empty", "cut", "objects"],
)
def test_what_is_no_npz_file_of_arrays_is_said_so_without_a_word_on_pickles(tmp_path, content):
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(ModelError) as refused:
        tasks.LocalModel(tmp_path / "m.npz", "npz", "0" * 64).load()
    assert str(refused.value) == "m.npz is not an npz file of arrays"


def test_a_model_that_lies_under_its_digest_is_named_in_short(tmp_path):
    (tmp_path / f"{'a' * 64}.npz").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"^aaaaaaaaaaaa\.npz is not"):
        tasks.LocalModel(tmp_path / f"{'a' * 64}.npz", "npz", "a" * 64).load()


def test_a_model_is_named_with_its_version_if_it_has_one(tmp_path):
    models = [tasks.LocalModel(tmp_path / "m.npz", "npz", "a" * 64, version) for version in (0, 3)]
    assert [model.named() for model in models] == [{"model": "a" * 12}, {"model": "a" * 12, "version": 3}]


def test_a_model_of_another_format_is_loaded_by_its_path(train):
    with pytest.raises(Refused, match="a model of format onnx is no list of arrays"):
        tasks.LocalModel(train.output_dir / "m.onnx", "onnx", "0" * 64).load()


def test_an_eval_worker_gets_the_new_model_first(evaluation):
    assert [model.load()[0][0, 0] for model in evaluation.models] == [2.0, 1.0]


# --- what it reports


async def test_arrays_are_reported_as_a_file_in_the_output_folder(train):
    await train.report({"loss": 0.5}, model=[np.ones(3, "float32")])
    assert slot_of(train).read_result() == ResultFile(RUN, "model.safetensors", "safetensors", {"": {"loss": 0.5}})


async def test_reported_arrays_are_those_of_the_file(train):
    await train.report({}, model=[np.arange(3.0), np.arange(4)])
    found = list(ArrayFile.open(train.output_dir / "model.safetensors"))
    assert [array.tolist() for array in found] == [[0.0, 1.0, 2.0], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("name", "known"), [("m.keras", "keras"), ("m.npz", "npz"), ("m.onnx", "onnx"), ("m.bin", "file")]
)
async def test_the_format_of_a_file_is_told_by_its_name(train, name, known):
    (train.output_dir / name).write_bytes(b"PK\x03\x04 and so on")
    await train.report({}, model=train.output_dir / name)
    assert slot_of(train).read_result() == ResultFile(RUN, name, known, {"": {}})


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("m.npz", pickle.dumps([1.0]), "m.npz is not an npz file of arrays"),
        ("m.npz", b"", "m.npz is not an npz file of arrays"),
        ("m.keras", b"\x89HDF\r\n", "m.keras is not a .keras file"),
        ("m.safetensors", b"PK\x03\x04 and so on", "m.safetensors is not a safetensors file"),
    ],
)
async def test_a_file_that_is_not_what_its_name_says_is_refused(train, name, content, what):
    (train.output_dir / name).write_bytes(content)
    with pytest.raises(UpdateError, match=what):
        await train.report({}, model=train.output_dir / name)


async def test_a_safetensors_file_that_the_script_has_written_is_a_model(train):
    write_arrays(train.output_dir / "m.safetensors", [np.ones(3)])
    await train.report({}, model=train.output_dir / "m.safetensors")
    assert slot_of(train).read_result() == ResultFile(RUN, "m.safetensors", "safetensors", {"": {}})


async def test_a_file_elsewhere_is_copied(train, tmp_path):
    (tmp_path / "elsewhere.bin").write_bytes(b"model")
    await train.report({}, model=str(tmp_path / "elsewhere.bin"))
    assert (train.output_dir / "elsewhere.bin").read_bytes() == b"model"


async def test_a_link_in_the_output_folder_is_not_what_is_handed_over(train, tmp_path):
    (tmp_path / "elsewhere.bin").write_bytes(b"model")
    (train.output_dir / "m.bin").symlink_to(tmp_path / "elsewhere.bin")
    await train.report({}, model=train.output_dir / "m.bin")
    assert not (train.output_dir / "m.bin").is_symlink()


@pytest.mark.parametrize("model", [None, [], 7])
async def test_what_is_no_model_is_refused(train, model):
    with pytest.raises(UpdateError):
        await train.report({}, model=model)


@pytest.mark.parametrize("name", ["m.pkl", "m.PICKLE", "m.joblib"])
async def test_a_pickle_is_no_model(train, name):
    (train.output_dir / name).write_bytes(b"x")
    with pytest.raises(UpdateError, match="is a pickle"):
        await train.report({}, model=train.output_dir / name)


async def test_a_folder_is_no_model(train):
    with pytest.raises(UpdateError, match="is a folder: a model is one file"):
        await train.report({}, model=train.output_dir)


async def test_a_missing_file_is_not_found(train):
    with pytest.raises(NotFound):
        await train.report({}, model=train.output_dir / "m.bin")


async def test_a_refused_report_leaves_nothing(train):
    with pytest.raises(UpdateError, match="is not a number"):
        await train.report({"loss": "low"}, model=[np.ones(1)])
    assert slot_of(train).read_result() is None


async def test_a_train_worker_reports_once(train):
    await train.report({}, model=[np.ones(1)])
    with pytest.raises(UpdateError, match="round 3 was reported already"):
        await train.report({}, model=[np.ones(1)])


async def test_a_reported_run_is_complete(train):
    await train.report({}, model=[np.ones(1)])
    assert slot_of(train).read_session().complete


async def test_a_run_without_a_report_is_not_complete(train):
    assert slot_of(train).read_session() == SessionFile()


async def test_metrics_of_an_eval_worker_are_kept_by_model(evaluation):
    new, serving = evaluation.models
    await evaluation.report({"accuracy": 0.9}, model=new)
    await evaluation.report({"accuracy": 0.8}, model=serving)
    assert slot_of(evaluation).read_result().metrics == {
        new.digest: {"accuracy": 0.9},
        serving.digest: {"accuracy": 0.8},
    }


async def test_an_eval_worker_is_complete_when_every_model_is_reported(evaluation):
    complete = []
    for model in evaluation.models:
        await evaluation.report({}, model=model)
        complete.append(slot_of(evaluation).read_session().complete)
    assert complete == [False, True]


async def test_an_eval_worker_reports_only_what_it_was_given(evaluation):
    with pytest.raises(UpdateError, match=r"which of task\.models"):
        await evaluation.report({}, model=[np.ones(1)])


async def test_a_model_is_reported_once(evaluation):
    await evaluation.report({}, model=evaluation.models[0])
    with pytest.raises(UpdateError, match="was reported already"):
        await evaluation.report({}, model=evaluation.models[0])


# --- verbs of other roles


@pytest.mark.parametrize("verb", ["infer", "serve"])
async def test_a_verb_of_the_deploy_worker_is_refused_elsewhere(train, verb):
    arguments = {"infer": (([1],), {}), "serve": ((), {"predict": print})}[verb]
    with pytest.raises(Refused, match=f"task.{verb} is for a deploy worker, and train of digits is a train worker"):
        await getattr(train, verb)(*arguments[0], **arguments[1])


async def test_rounds_are_refused_outside_of_federated_training(train):
    with pytest.raises(Refused, match=r"task\.rounds is for a training worker"):
        await anext(train.rounds())


def test_an_eval_worker_has_no_base_model(evaluation):
    with pytest.raises(Refused, match=r"looks at each of task\.models"):
        _ = evaluation.base_model


def test_a_slot_without_work_is_damaged(tmp_path):
    slot = SlotDir(tmp_path)
    slot.create()
    slot.write_slot(SlotFile("edge1", Assignment(TASK, "digits", UID, 1, "train", Role.TRAIN)))
    with pytest.raises(DamagedFile, match="a train worker without work"):
        StageRun(WorkerEnvironment(TASK, "train", "edge1", "", "", slot))


async def test_a_script_that_joins_is_taken_up_by_its_role(tmp_path, monkeypatch):
    slot = slot_for(tmp_path / "slot", Role.TRAIN, 1.0)
    credentials = tmp_path / "none.json"
    variables = {"TASK": TASK, "WORKER": "train", "NODE": "edge1", "BUS": "mqtt://127.0.0.1:1"}
    for name, value in {**variables, "CREDENTIALS_FILE": str(credentials), "SLOT_DIR": str(slot.path)}.items():
        monkeypatch.setenv(f"EDGEAI_{name}", value)
    async with tasks.join() as task:
        await task.report({}, model=[np.ones(1)])
    assert slot.read_session().complete


async def test_the_digest_of_a_given_model_is_that_of_its_file(evaluation):
    assert [digest_of(model.path) for model in evaluation.models] == [model.digest for model in evaluation.models]
