"""Scripts of a joint inference service, as processes that are asked to stop while an application waits for its answer."""

from __future__ import annotations

import asyncio
import textwrap
from pathlib import Path

import numpy as np
import pytest

import edgeai
from edgeai.bus.credentials import write_credentials_file
from edgeai.bus.mqtt import MqttBus
from edgeai.events.catalogue import Role
from edgeai.launcher import ExitReason, LaunchSpec, ProcessLauncher
from edgeai.worker.task import TERMINATED
from joint_world import TASK, Application, deploy, slot_of, spec_of, until

SLOW = """
    import asyncio, time
    import edgeai

    def predict(model, x):
        print("predicting")
        time.sleep(0.5)
        return x * model[0]
"""
ASYNC = """
    async def main():
        async with edgeai.join() as task:
            await task.serve(predict=predict)
            await task.until_stopped()

    asyncio.run(main())
"""
SYNC = """
    with edgeai.join_sync() as task:
        task.serve(predict=predict)
        task.until_stopped()
"""


@pytest.mark.parametrize("script", [ASYNC, SYNC], ids=["async", "sync"])
async def test_what_is_under_way_at_sigterm_is_answered(
    mosquitto_url: str, node: str, tmp_path: Path, script: str
) -> None:
    spec = spec_of(edge={"hardExampleMining": {"algorithm": "EdgeOnly"}, "nodeName": node})
    slot = slot_of(tmp_path / "slot", spec, Role.EDGE, node=node, worker="little")
    deploy(slot, 2.0)
    boot = slot.script / "main.py"
    boot.write_text(textwrap.dedent(SLOW) + textwrap.dedent(script))
    credentials = tmp_path / "credentials.json"
    write_credentials_file(credentials, mosquitto_url, "worker", "secret")
    environ = {
        "EDGEAI_TASK": TASK,
        "EDGEAI_WORKER": "little",
        "EDGEAI_NODE": node,
        "EDGEAI_BUS": mosquitto_url,
        "EDGEAI_CREDENTIALS_FILE": str(credentials),
        "EDGEAI_SLOT_DIR": str(slot.path),
        "PYTHONPATH": str(Path(edgeai.__file__).parents[1]),
    }
    launcher = ProcessLauncher()
    running = await launcher.start(LaunchSpec("w", slot.path, ("python", "-u", str(boot)), environ, slot.script))
    try:
        async with MqttBus(mosquitto_url, client_id=f"{node}-shop") as bus:
            shop = Application(bus, node=node)
            async with shop.listening():
                await until(lambda: slot.log.exists() and "model_serves" in slot.log.read_text())
                asked = await asked_until_begun(shop, slot.log)
                record = await launcher.stop(running, 20.0)
                [answer, *_] = [answer for each in asked for answer in shop.heard[each]] or [None]
    finally:
        if (left := await launcher.adopt("w", slot.path)) is not None:
            await launcher.stop(left, 0.0)
    assert answer is not None
    assert answer.by == "edge"
    assert (record.reason, record.code) == (ExitReason.EXITED, TERMINATED)
    assert "Traceback" not in slot.log.read_text()


async def asked_until_begun(shop: Application, log: Path) -> list[bytes]:
    """Requests, until one is under way."""
    asked = []
    while "predicting" not in log.read_text():
        asked.append(await shop.ask(np.ones((2,), "float32")))
        await asyncio.sleep(0.1)
    return asked
