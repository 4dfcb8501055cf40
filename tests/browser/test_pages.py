"""A person at the portal: applies, watches, downloads, deletes, by mouse and by keyboard."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser_world import PHONE, Visits, World

from edgeai.portal.access import Role
from edgeai.resources.manifest import dump_manifests

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
PATHS = (
    "/",
    "/tasks",
    "/edges",
    "/edges/edge1",
    "/models/small",
    "/datasets",
    "/search",
    "/apply",
    "/tokens",
    "/audit",
)
HOSTILE = "<img src=x onerror='window.hacked=1'>"


async def applied(world: World, name: str, rounds: int = 3) -> None:
    """Over HTTP, for tests that are about something else."""
    text = dump_manifests(world.cluster.manifest(name, rounds))
    async with world.portal.client() as client:
        answer = await client.post("/api/v1/apply", content=text, headers={"Content-Type": "application/yaml"})
        assert answer.status_code == 200, answer.text


async def ended(found: Any) -> None:
    await found.sees("h1 .badge", "Succeeded", 90)


async def test_a_task_is_applied_in_the_page_and_watched_to_its_end_and_its_model_downloaded(
    world: World, visit: Visits
) -> None:
    found = await visit(world.portal.url, world.link())
    page = found.page
    await page.get_by_role("link", name="Apply", exact=True).click()
    await page.fill("#apply-text", dump_manifests(world.cluster.manifest("digits")))
    await page.click("#apply-go")
    await found.sees("#confirm .changes li:has-text('FederatedTask digits')", "will be created")
    await page.click("#confirm-yes")
    await page.wait_for_url("**/tasks/federatedtasks/digits")
    await ended(found)

    # Its plot: drawn, and said in words.
    chart = page.locator("figure[data-chart=metric-accuracy]")
    await chart.locator("canvas").wait_for()
    assert "on held-out data 0.9375" in (await chart.get_attribute("aria-label") or "")
    painted = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    assert await chart.locator("canvas").evaluate(painted)

    # Its rounds: who answered.
    await page.click("#round-3 > summary")
    await found.sees("#round-3 .part[data-state=answered]")
    assert await page.locator("#round-3 .part[data-state=answered]").count() == 2
    await found.shot("task", full=True)

    # Its model.
    await page.get_by_role("link", name="digits", exact=True).first.click()
    digest = await page.get_attribute("[data-digest]", "data-digest")
    async with page.expect_download() as told:
        await page.get_by_role("link", name="Download version 1").click()
    download = await told.value
    assert download.suggested_filename == "digits-1.safetensors"
    assert hashlib.sha256(Path(await download.path()).read_bytes()).hexdigest() == digest
    await found.shot("model")


async def test_every_event_of_a_task_is_listed_in_order(world: World, visit: Visits) -> None:
    await applied(world, "listed", 2)
    found = await visit(world.portal.url, world.link(Role.VIEWER))
    await found.open("/tasks/federatedtasks/listed")
    await found.page.click("#events > summary")  # what happens from now on is followed
    await ended(found)
    await found.sees("#events td", "worker-ended")
    cells = await found.page.locator("#events tbody tr td:first-child").all_text_contents()
    assert [int(text) for text in cells] == sorted(int(text) for text in cells)
    kinds = await found.page.locator("#events tbody tr td:nth-child(3)").all_text_contents()
    assert kinds[0] == "phase-changed"
    assert kinds.count("round-closed") == 3  # round 0 gives the first weights


async def test_values_that_hardly_differ_have_an_axis_with_numbers(world: World, visit: Visits) -> None:
    """uPlot looks for ticks that are a billionth apart for seconds, and finds none."""
    await applied(world, "steady", 1)
    found = await visit(world.portal.url, world.link(Role.VIEWER))
    await found.page.add_init_script(
        "window.written = []; const draw = CanvasRenderingContext2D.prototype.fillText;"
        "CanvasRenderingContext2D.prototype.fillText = function (text, ...more) { window.written.push(text);"
        " return draw.call(this, text, ...more); };"
    )
    await found.open("/tasks/federatedtasks/steady")
    await ended(found)
    await found.page.evaluate(
        """() => {
          const told = document.getElementById("plot-data");
          const x = [...Array(500).keys()];
          const near = x.map((round) => 1 - 2 ** -30 * (1 - round / 499));
          told.dataset.plots = JSON.stringify({ x, validated: { near }, submitted: {} });
          window.written = [];
          document.dispatchEvent(new CustomEvent("edgeai:shown"));
        }"""
    )
    await found.page.wait_for_function("() => window.written.includes('1')")


async def test_a_token_is_made_shown_once_and_revoked_on_its_page(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url, world.link())
    page = found.page
    await found.open("/tokens")
    await page.fill("#token-name", "press")
    await page.select_option("#token-role", "viewer")
    await page.get_by_role("button", name="Make a token").click()
    await page.click("#confirm-yes")
    secret = await (await found.sees("#token-secret")).inner_text()
    await found.sees("#token-press", "viewer")
    async with httpx.AsyncClient(base_url=world.portal.url, trust_env=False) as client:
        headers = {"Authorization": f"Bearer {secret}"}
        assert (await client.get("/api/v1/me", headers=headers)).json()["name"] == "press"
        await page.reload()
        assert secret not in await page.content()
        await page.get_by_role("button", name="Revoke press").click()
        await page.click("#confirm-yes")
        await page.locator("#token-press").wait_for(state="detached")
        assert (await client.get("/api/v1/me", headers=headers)).status_code == 401


async def test_tokens_are_offered_to_administrators_only(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url, world.link(Role.OPERATOR))
    found.allow("status of 403")
    assert await found.page.locator("a[href='/tokens']").count() == 0
    await found.open("/tokens")
    await found.sees("h1", "Not allowed")
    assert await found.page.locator("#token-form").count() == 0


async def test_a_log_grows_while_it_is_open(world: World, visit: Visits) -> None:
    await applied(world, "talks", 500)
    found = await visit(world.portal.url, world.link(Role.OPERATOR))
    await found.open("/tasks/federatedtasks/talks")
    await found.page.click("[data-worker=work1]")
    await found.sees("#log-text", "round 2")
    last = r"Number(document.getElementById('log-text').textContent.match(/round (\d+)\s*$/)?.[1] ?? 0)"
    before = await found.page.evaluate(last)
    await found.page.wait_for_function(f"before => {last} > before", arg=before)
    async with world.portal.client() as client:
        assert (await client.delete("/api/v1/federatedtasks/talks")).is_success


async def test_a_dataset_shows_its_history_and_what_was_trained_on_it(world: World, visit: Visits) -> None:
    await applied(world, "traced", 1)
    found = await visit(world.portal.url, world.link(Role.VIEWER))
    await found.page.add_init_script(
        "window.written = []; const draw = CanvasRenderingContext2D.prototype.fillText;"
        "CanvasRenderingContext2D.prototype.fillText = function (text, ...more) { window.written.push(text);"
        " return draw.call(this, text, ...more); };"
    )
    await found.open("/tasks/federatedtasks/traced")
    await ended(found)
    await found.open("/datasets/data1")
    await found.page.locator("#counts canvas").wait_for()
    label = await found.page.locator("#counts [aria-label]").first.get_attribute("aria-label")
    assert "first 4, last 4" in (label or "")
    written = await found.page.evaluate("window.written.join(' ')")
    assert str(datetime.now().year + 2) not in written, "one number is drawn until now, not for years to come"
    await found.sees("#snapshots tr:has(a[href='/models/traced#version-1'])", "traced 1")


async def test_an_error_in_a_manifest_is_shown_at_its_line(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url, world.link(Role.OPERATOR))
    found.allow("status of 422")
    await found.open("/apply")
    text = dump_manifests(world.cluster.manifest("wrong")).replace(
        "aggregationAlgorithm: FedAvg", "aggregationAlgorithm: Magic"
    )
    line = next(number for number, one in enumerate(text.splitlines(), 1) if "Magic" in one)
    await found.page.fill("#apply-text", text)
    await found.page.click("#apply-check")
    await found.sees("#apply-problems", f"Line {line}")
    assert await found.page.locator("#apply-gutter .wrong").all_text_contents() == [str(line)]
    chosen = "field => field.value.slice(field.selectionStart, field.selectionEnd)"
    assert "Magic" in await found.page.locator("#apply-text").evaluate(chosen)
    await found.shot("apply-error")


async def test_a_file_is_uploaded_and_checked(world: World, visit: Visits, tmp_path: Path) -> None:
    found = await visit(world.portal.url, world.link(Role.OPERATOR))
    file = tmp_path / "model.yaml"
    file.write_text("apiVersion: edgeai.io/v1alpha1\nkind: Model\nmetadata:\n  name: uploaded\nspec: {}\n")
    await found.open("/apply")
    await found.page.set_input_files("#apply-file", file)
    await found.page.click("#apply-check")
    await found.sees("#apply-state", "Fine. 1 of 1 would change.")


async def test_what_has_changed_meanwhile_is_not_overwritten(world: World, visit: Visits) -> None:
    await applied(world, "contested", 1)
    found = await visit(world.portal.url, world.link(Role.OPERATOR))
    found.allow("status of 409")
    await found.open("/apply?from=models/contested")
    await found.sees("#apply-name", "contested, as applied")
    async with world.portal.client() as client:
        change = {"metadata": {"labels": {"by": "another"}}, "spec": {}}
        headers = {"Content-Type": "application/merge-patch+json"}
        before = (await client.get("/api/v1/models/contested")).json()["metadata"]["generation"]
        text = await found.page.input_value("#apply-text")
        await client.patch("/api/v1/models/contested", content=json.dumps(change), headers=headers)
    await found.page.fill("#apply-text", text.replace(f"generation: {before}", f"generation: {before + 7}"))
    await found.page.click("#apply-check")
    await found.sees("#apply-problems", "read it again")


async def test_a_task_is_paused_resumed_and_deleted_after_a_question_each(world: World, visit: Visits) -> None:
    await applied(world, "steered", 500)
    found = await visit(world.portal.url, world.link(Role.OPERATOR))
    page = found.page
    await found.open("/tasks/federatedtasks/steered")
    await found.sees("h1 .badge", "Running")
    await page.get_by_role("button", name="Pause").click()
    await page.keyboard.press("Escape")  # changed one's mind
    assert await page.get_by_role("button", name="Pause").is_visible()
    await page.get_by_role("button", name="Pause").click()
    await page.click("#confirm-yes")
    await found.sees("h1 .badge", "Paused")
    await page.get_by_role("button", name="Resume").click()
    await page.click("#confirm-yes")
    await found.sees("h1 .badge", "Running")
    await page.get_by_role("button", name="Delete").click()
    assert await page.evaluate("document.activeElement.id") == "confirm-no", "the harmless button has the focus"
    await page.click("#confirm-yes")
    await page.wait_for_url("**/tasks")
    await found.sees(".toast", "steered is deleted")
    await page.locator("#row-federatedtask-steered").wait_for(state="detached")


async def test_an_older_version_of_a_model_is_made_the_newest_again(world: World, visit: Visits) -> None:
    await applied(world, "twice", 1)
    found = await visit(world.portal.url, world.link(Role.OPERATOR))
    await found.open("/tasks/federatedtasks/twice")
    await ended(found)
    manifest = world.cluster.manifest("twice-again", 1)
    manifest[-1]["spec"]["aggregationWorker"]["model"]["name"] = "twice"
    async with world.portal.client() as client:
        body = dump_manifests(manifest[1:])
        await client.post("/api/v1/apply", content=body, headers={"Content-Type": "application/yaml"})
    await found.open("/models/twice")
    await found.sees("#version-2")
    await found.page.locator("#lineage-2 > summary").click()
    await found.sees("#lineage-2", "work1 on edge1: data1")
    for version in (1, 2):
        await found.page.get_by_role("checkbox", name=f"Compare version {version}").check()
    await found.page.get_by_role("button", name="Compare the chosen").click()
    await found.sees("#compared thead", "Version 2")
    await found.sees("#compared tr:has-text('Made from')", "data1")
    await found.page.get_by_role("link", name="Close").click()
    old = await found.page.get_attribute("#version-1 [data-digest]", "data-digest")
    await found.page.locator("#version-1").get_by_role("button", name="Roll back").click()
    await found.page.click("#confirm-yes")
    await found.sees("#version-3", "Newest")
    assert await found.page.get_attribute("#version-3 [data-digest]", "data-digest") == old


async def test_a_viewer_sees_everything_and_is_offered_nothing_to_change(world: World, visit: Visits) -> None:
    await applied(world, "viewed", 1)
    found = await visit(world.portal.url, world.link(Role.VIEWER))
    found.allow("status of 403")
    await found.open("/tasks/federatedtasks/viewed")
    await ended(found)
    assert await found.page.locator("[data-action], a[href^='/apply']").count() == 0
    await found.open("/apply")
    await found.sees("h1", "Not allowed")


async def test_script_in_logs_and_names_stays_text(world: World, visit: Visits) -> None:
    await applied(world, "hostile", 1)
    bad = {"apiVersion": "edgeai.io/v1alpha1", "kind": "Dataset", "metadata": {"name": "hostile"}}
    bad |= {"spec": {"nodeName": "edge1", "url": f"/nowhere/{HOSTILE}", "format": "npz"}}
    async with world.portal.client() as client:
        await client.post("/api/v1/apply", content=dump_manifests([bad]), headers={"Content-Type": "application/yaml"})
    found = await visit(world.portal.url, world.link())
    found.allow("status of 422")
    page = found.page
    for path in (f"/edges?search={HOSTILE}", f"/search?search={HOSTILE}", "/datasets/hostile", "/datasets", "/"):
        await found.open(path)
        await found.sees("#live")
    await found.open("/datasets/hostile")
    await found.sees(".facts", HOSTILE)
    await found.open("/tasks/federatedtasks/hostile")
    await ended(found)
    await page.click("[data-worker=work1]")
    await found.sees("#log-text", "joined work1 <script>window.hacked = 1</script>")
    await page.keyboard.press("Escape")
    await found.open("/apply")
    await page.fill("#apply-text", f'kind: "{HOSTILE}"\n')
    await page.click("#apply-check")
    await found.sees("#apply-problems li")
    assert await page.evaluate("window.hacked") is None
    assert await page.locator("main img, main script").count() == 0


async def test_the_keyboard_alone_is_enough(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url, world.link())
    page = found.page
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "main"
    for key, path in (("t", "/tasks"), ("m", "/models"), ("d", "/datasets"), ("e", "/edges")):
        await page.keyboard.press("g")
        await page.keyboard.press(key)
        await page.wait_for_url(f"**{path}")
    await page.keyboard.press("/")
    await page.keyboard.type("edge2")
    await page.locator("#row-edge-edge1").wait_for(state="detached")
    assert page.url.endswith("/edges?search=edge2"), "the address keeps what the list is narrowed to"
    await page.keyboard.press("Escape")
    await page.keyboard.press("?")
    await found.sees("#keys")
    await page.keyboard.press("Escape")
    await page.locator("#keys").wait_for(state="hidden")
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/edges/edge2")
    await page.keyboard.press("g")
    await page.keyboard.press("o")
    await page.wait_for_url(f"{world.portal.url}/")


async def test_pages_fit_a_phone(world: World, visit: Visits) -> None:
    await applied(world, "small", 2)
    found = await visit(world.portal.url, world.link(), viewport=PHONE, device_scale_factor=2)
    await found.open("/tasks/federatedtasks/small")
    await ended(found)
    wide = []
    for path in ("/tasks/federatedtasks/small", *PATHS):
        await found.open(path)
        if await found.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wide.append(path)
    assert wide == []
    cut = "links => links.filter(link => link.getBoundingClientRect().right > innerWidth).length"
    assert await found.page.locator(".top nav a").evaluate_all(cut) == 0, "the whole menu is in sight"
    await found.open("/tasks/federatedtasks/small")
    await found.shot("phone", full=True)


async def test_a_model_with_many_metrics_fits_a_small_desk_and_its_buttons_stay_in_sight(
    world: World, visit: Visits
) -> None:
    metrics = {f"a_longer_metric_{number}": 0.123456 for number in range(12)}
    made = {"digest": "ab" * 32, "sizeBytes": 8, "createdAt": "2030-01-31T12:00:00Z", "format": "safetensors"}
    versions = [{**made, "version": number, "metrics": metrics} for number in (1, 2)]
    model = {"apiVersion": "edgeai.io/v1alpha1", "kind": "Model", "metadata": {"name": "wide", "uid": "wide"}}
    async with world.cluster.source() as cloud:
        await cloud.resources.create("Model", "wide", {**model, "spec": {}, "status": {"versions": versions}})
    found = await visit(world.portal.url, world.link(), viewport={"width": 1280, "height": 800})
    await found.open("/models/wide")
    await found.sees("#version-2")
    assert await found.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = "#version-1 .row > *"
    right = await found.page.locator(box).last.evaluate("button => button.getBoundingClientRect().right")
    assert right <= 1280
    async with world.cluster.source() as cloud:
        await cloud.delete("Model", "wide")


async def test_light_and_dark_are_chosen_and_remembered(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url, world.link(), color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = await found.page.evaluate(ground)
    await found.shot("overview-dark")
    await found.page.get_by_role("button", name="Switch to light").click()
    light = await found.page.evaluate(ground)
    await found.page.reload()
    assert (await found.page.evaluate(ground), light == dark) == (light, False)
    await found.shot("overview-light")


async def test_a_wrong_token_is_refused_in_words_and_a_used_link_as_well(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url)
    found.allow("status of 401")
    await found.open("/edges")
    await found.page.fill("#token", "wrong")
    await found.page.get_by_role("button", name="Log in").click()
    await found.sees("[role=alert]", "not known here")
    link = world.link()
    await visit(world.portal.url, link)
    await found.page.goto(link)
    await found.sees("[role=alert]", "used or has expired")


async def test_an_address_without_a_page_is_said_on_a_page(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url, world.link(Role.VIEWER))
    found.allow("status of 404")
    await found.open("/nowhere")
    await found.sees("h1", "Not found")
    await found.page.get_by_role("link", name="Overview").first.click()
    await found.page.wait_for_url(f"{world.portal.url}/")


async def test_logging_out_ends_the_session(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url, world.link())
    await found.page.click(".menu > summary")
    await found.page.get_by_role("button", name="Log out").click()
    await found.page.wait_for_url("**/login")
    await found.open("/tasks")
    assert found.page.url.endswith("/login?next=%2Ftasks")


@contextlib.asynccontextmanager
async def edge_process(world: World, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """One more edge, as a process that can be killed."""
    folder = world.cluster.folder / name
    folder.mkdir()
    credentials = folder / "credentials.json"
    credentials.write_text(json.dumps({"url": world.cluster.url, "username": "", "password": ""}))
    argv = ["-m", "edgeai", "controller", "--node", name, "--bus", world.cluster.url, "--state-dir", str(folder)]
    argv += ["--credentials", str(credentials), "--worker-credentials", str(credentials)]
    quiet = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}
    process = await asyncio.create_subprocess_exec(sys.executable, *argv, **quiet)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_an_edge_that_is_killed_turns_silent_within_its_time(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url, world.link())
    async with edge_process(world, "edge3") as process:
        await found.sees("#tile-edge3 [data-state=ready]")
        process.send_signal(signal.SIGKILL)
        await found.sees("#tile-edge3 [data-state=silent]", "Silent", 30)
        await found.sees(".attention", "edge3 has not been heard of")
        await found.sees("#tile-edge3 .age")
        await found.shot("overview-silent")
        await found.open("/edges/edge3")
        await found.sees(".note", "Unknown: edge3 has not been heard of")
        assert await found.page.locator("dt:has-text('Outbox') + dd").inner_text() == "unknown"
