"""The files for Prometheus and Grafana: they name what there is, and promtool takes them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from edgeai import metrics
from edgeai.settings import shipped

FOLDER = shipped("config/monitoring")
PROMTOOL = shutil.which("promtool")
NAMES = {row.name: row for row in metrics.TABLE}
NAMES |= {f"{row.name}_{part}": row for row in metrics.TABLE if row.kind == "histogram" for part in ("bucket", "sum")}
NAMES |= {f"{row.name}_count": row for row in metrics.TABLE if row.kind == "histogram"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]


def panels() -> Iterator[dict[str, Any]]:
    return (each for each in json.loads((FOLDER / "grafana-dashboard.json").read_text())["panels"])


def expressions() -> list[str]:
    drawn = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    return [*drawn, *(rule["expr"] for rule in rules())]


@pytest.mark.parametrize("file", ["rules.yml", "rules_test.yml", "grafana-dashboard.json"])
def test_every_metric_that_is_named_exists(file: str):
    found = set(re.findall(r"\bedgeai_[a-z_]+", (FOLDER / file).read_text()))
    assert found
    assert found <= NAMES.keys()


def test_every_label_that_is_selected_exists():
    """`machine`, `part` and `job` come from the scraper, `le` is a histogram's."""
    for expression in expressions():
        for name, selection in re.findall(r"\b(edgeai_[a-z_]+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)[=!]", selection))
            assert labels <= {*NAMES[name].labels, "machine", "part", "job", "le"}, expression


def test_every_metric_is_looked_at_by_somebody():
    """All but one: what the portal has seen is for those who measure it."""
    looked_at = set(re.findall(r"\bedgeai_[a-z_]+", " ".join(expressions())))
    assert {row.name for row in metrics.TABLE} - {NAMES[name].name for name in looked_at} == {"edgeai_portal_changes"}


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    for rule in rules():
        assert rule["for"], rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert {"summary", "description"} == rule["annotations"].keys()


def test_every_alert_has_a_test():
    tested = (FOLDER / "rules_test.yml").read_text()
    assert [rule["alert"] for rule in rules() if rule["alert"] not in tested] == []


def test_panels_do_not_lie_on_each_other():
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_every_panel_reads_from_the_prometheus_that_was_chosen():
    for panel in panels():
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["description"]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
@pytest.mark.parametrize(
    "arguments", ["check rules rules.yml", "test rules rules_test.yml", "check config prometheus.yml"]
)
def test_promtool_accepts_it(arguments: str):
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *arguments.split()], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
