"""What is given to a worker is what was verified: a change is repaired where we can, and told where we cannot."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from pathlib import Path

import pytest

from edgeai.controller import inputs as inputs_module
from edgeai.controller.datasets import DatasetProblem, fingerprint
from edgeai.controller.inputs import Inputs, Verified
from edgeai.controller.places import Prepared, ProcessPlaces
from edgeai.controller.scripts import PreparationProblem
from edgeai.errors import NotFound, StoreError
from edgeai.events.catalogue import Assignment, BlobRef, DatasetWanted, Role
from edgeai.launcher.slots import SlotDir
from edgeai.store.files import digest_bytes

WANTED = DatasetWanted("digits", "/unused", "npz")


def bundle() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, text in (("main.py", b"print('good')"), ("more/part.py", b"x = 1")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return target.getvalue()


class FakeCache:
    """Holds one bundle, unless it is away or lost."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bundle())
        self.path, self.asked, self.away, self.lost = path, 0, False, False

    async def bring(self, _blob: BlobRef, _task: str = "") -> Path:
        self.asked += 1
        if self.away:
            await asyncio.Event().wait()
        if self.lost:
            raise NotFound("blob", "ab")
        return self.path


class Sealed(ProcessPlaces):
    """Scripts out of the worker's reach, as in containers."""

    @property
    def sealed(self) -> bool:
        return True


class World:
    def __init__(self, folder: Path) -> None:
        self.slot = SlotDir(folder / "slot")
        self.slot.create()
        self.cache = FakeCache(folder / "bundle")
        places = Sealed("edge1", "mqtt://unused", folder)
        self.inputs = Inputs("edge1", places, self.cache)  # type: ignore[arg-type]
        blob = BlobRef(digest_bytes(bundle()), len(bundle()))
        self.assignment = Assignment("t", "t", "0" * 32, 1, "work1", Role.TRAINING, boot_file="main.py", script=blob)
        self.dataset = folder / "digits.npz"
        self.dataset.write_bytes(b"examples")

    async def prepare(self) -> None:
        script = await self.inputs.bring_script(self.assignment, self.slot)
        self.inputs.note(self.slot, Verified(fingerprint(self.dataset), script))
        self.cache.asked = 0

    async def require(self, wanted: DatasetWanted = WANTED) -> list[str]:
        return await self.inputs.require(self.assignment, Prepared(self.slot, self.slot.script, self.dataset), wanted)

    def model(self, content: bytes, name: bytes) -> Path:
        path = self.slot.model(digest_bytes(name))
        path.write_bytes(content)
        return path


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    await made.prepare()
    return made


async def test_what_has_not_changed_is_not_read_again(world: World, monkeypatch):
    def read(_path: Path) -> object:
        raise AssertionError("it was read")

    monkeypatch.setattr(inputs_module, "fingerprint", read)
    assert await world.require() == []
    assert world.cache.asked == 0


async def test_a_dataset_that_has_changed_is_told_with_both_digests(world: World):
    world.dataset.write_bytes(b"other examples")
    with pytest.raises(DatasetProblem) as problem:
        await world.require()
    text = str(problem.value)
    assert text.startswith("dataset digits on edge1 has changed since it was verified: ")
    assert f"14 bytes with digest {digest_bytes(b'other examples')[:12]}" in text
    assert f"not 8 bytes with digest {digest_bytes(b'examples')[:12]}; put that file back" in text


async def test_a_dataset_of_the_same_size_and_time_that_has_changed_is_told(world: World):
    before = world.dataset.stat()
    world.dataset.write_bytes(b"EXAMPLES")
    os.utime(world.dataset, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DatasetProblem):
        await world.require()


async def test_a_dataset_that_was_replaced_by_the_same_bytes_is_the_same(world: World):
    world.dataset.unlink()
    world.dataset.write_bytes(b"examples")
    assert await world.require() == []


async def test_a_dataset_that_has_gone_is_told(world: World):
    world.dataset.unlink()
    with pytest.raises(DatasetProblem, match="dataset digits on edge1 cannot be read any more"):
        await world.require()


async def test_a_digest_of_the_manifest_stands_over_what_was_verified(world: World):
    world.dataset.write_bytes(b"other examples")
    assert await world.require(DatasetWanted("digits", "", "npz", digest_bytes(b"other examples"))) == []
    with pytest.raises(DatasetProblem, match="has changed since it was verified"):
        await world.require(DatasetWanted("digits", "", "npz", digest_bytes(b"examples")))


async def test_a_slot_of_which_nothing_is_noted_is_read_and_noted(world: World):
    (world.slot.path / "verified.json").unlink()
    await world.require()
    world.dataset.write_bytes(b"other examples")
    with pytest.raises(DatasetProblem):
        await world.require()


def changed(script: Path) -> None:
    (script / "main.py").write_text("print('evil')")


def added(script: Path) -> None:
    (script / "json.py").write_text("print('evil')")


def removed(script: Path) -> None:
    (script / "more/part.py").unlink()


def linked(script: Path) -> None:
    (script / "more").rename(script.parent / "elsewhere")
    (script / "more").symlink_to(script.parent / "elsewhere")


@pytest.mark.parametrize("tamper", [changed, added, removed, linked])
async def test_a_script_that_was_tampered_with_is_put_right(world: World, tamper):
    tamper(world.slot.script)
    await world.require()
    files = {str(path.relative_to(world.slot.script)): path for path in world.slot.script.rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in files.items()} == {
        "main.py": "print('good')",
        "more/part.py": "x = 1",
    }
    assert not (world.slot.script / "more").is_symlink()


async def test_a_script_that_was_put_right_is_noted(world: World):
    changed(world.slot.script)
    await world.require()
    world.cache.asked = 0
    await world.require()
    assert world.cache.asked == 0


async def test_a_tampered_script_whose_bundle_is_lost_is_refused(world: World):
    changed(world.slot.script)
    world.cache.lost = True
    with pytest.raises(PreparationProblem, match="the script of work1 on edge1 is not what was verified"):
        await world.require()


async def test_a_tampered_script_does_not_wait_for_its_bundle_for_ever(world: World, monkeypatch):
    monkeypatch.setattr(inputs_module, "BUNDLE_S", 0.01)
    changed(world.slot.script)
    world.cache.away = True
    with pytest.raises(StoreError, match="does not arrive"):
        await world.require()


async def test_a_damaged_model_is_removed_and_named_and_a_good_one_stays(world: World):
    good, bad = world.model(b"good", b"good"), world.model(b"bad", b"what it was")
    assert await world.require() == [digest_bytes(b"what it was")]
    assert good.exists()
    assert not bad.exists()


async def test_a_model_that_is_a_link_is_removed(world: World):
    (world.slot.path / "elsewhere").write_bytes(b"good")
    world.slot.model(digest_bytes(b"good")).symlink_to(world.slot.path / "elsewhere")
    assert await world.require() == [digest_bytes(b"good")]
