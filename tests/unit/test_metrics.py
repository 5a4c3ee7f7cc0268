"""The declared metrics, and all that goes by their names: TorchServe's file, documentation, rules
and dashboard.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from segserve.engines.torchserve_process import torchserve_home, write_metrics_file
from segserve.gateway import metrics as container_metrics
from segserve.gateway.metrics import WAIT_BUCKETS_S
from segserve.runtime.metrics import BUCKETS, ENGINE, OWN, Kind, Metric
from tests.samples import sample_names

GATEWAY = tuple(value for value in vars(container_metrics).values() if isinstance(value, Metric))
PROJECT = Path(__file__).parents[2]
DOCUMENT = (PROJECT / "docs" / "metrics.md").read_text()
RULES_FILE = PROJECT / "deploy" / "prometheus" / "alerts.yaml"
RULES = [
    rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]
]
DASHBOARD = json.loads((PROJECT / "deploy" / "grafana" / "segserve.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
STOCK = torchserve_home() / "ts" / "configs" / "metrics.yaml"

# What an expression may contain besides our metrics: Prometheus' own series, and keywords.
_OTHERS = {
    "up",
    "ALERTS",
    "by",
    "without",
    "or",
    "and",
    "unless",
    "offset",
    "group_left",
    "group_right",
}


def metrics_in(expression: str) -> set[str]:
    """Names of the metrics in PromQL: words that are no function, keyword, label or text."""
    text = re.sub(r'"[^"]*"', "", expression)
    text = re.sub(
        r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)|\{[^}]*\}|\[[^\]]*\]",
        " ",
        text,
    )
    return set(re.findall(r"(?<![\w:.$])[a-zA-Z_][\w:]*\b(?!\s*\()", text)) - _OTHERS


def declared_names() -> set[str]:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    return {
        name for metric in (*OWN, *ENGINE, *GATEWAY) for name in sample_names(metric)
    } | recorded


EXPRESSIONS = {
    **{f"rule {rule.get('record') or rule.get('alert')}": rule["expr"] for rule in RULES},
    **{
        f"panel {panel['title']} {target['refId']}": target["expr"]
        for panel in PANELS
        for target in panel["targets"]
    },
    **{f"annotation {each['name']}": each["expr"] for each in DASHBOARD["annotations"]["list"]},
    **{
        f"example {place}": example
        for place, example in enumerate(
            re.findall(r"^```promql\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
        )
    },
}


# The declaration


def test_own_metrics_have_prometheus_s_kind_of_names():
    names = [metric.name for metric in (*OWN, *GATEWAY)]
    assert len(set(names)) == len(names)
    for metric in (*OWN, *GATEWAY):
        assert re.fullmatch(r"segserve_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric in GATEWAY or metric.labels[:2] == ("model_name", "model_version")
        assert metric.description.endswith(".")
        if metric.unit in ("Seconds", "Bytes", "Megapixels", "Ratio"):
            assert metric.unit.lower() in metric.name


def test_sample_names_of_a_histogram_are_three():
    histogram = Metric("x", Kind.HISTOGRAM, "Seconds", "X.", ())
    assert sample_names(histogram) == ("x_bucket", "x_sum", "x_count")
    assert sample_names(Metric("x", Kind.GAUGE, "Seconds", "X.", ())) == ("x",)


def test_engine_metrics_are_those_of_torchserve_s_own_file():
    content = yaml.safe_load(STOCK.read_text())
    theirs = {
        entry["name"]: (kind, entry["dimensions"])
        for section in ("ts_metrics", "model_metrics")
        for kind, entries in content[section].items()
        for entry in entries
    }
    for metric in ENGINE:
        kind, labels = theirs[metric.name]
        assert kind == metric.kind
        assert [label for label in labels if label != metric.host_label] == list(metric.labels)


def test_metrics_file_has_all_of_torchserve_s_and_ours(tmp_path):
    write_metrics_file(tmp_path / "metrics.yaml")
    written, stock = (
        yaml.safe_load((tmp_path / "metrics.yaml").read_text()),
        yaml.safe_load(STOCK.read_text()),
    )
    assert written["ts_metrics"] == stock["ts_metrics"]
    for kind in Kind:
        entries = [
            {"name": metric.name, "unit": metric.unit, "dimensions": list(metric.labels)}
            for metric in OWN
            if metric.kind is kind
        ]
        assert written["model_metrics"][kind] == stock["model_metrics"].get(kind, []) + entries


def test_document_tables_are_the_declaration():
    rows = [
        line
        for line in DOCUMENT.splitlines()
        if re.match(r"\| `\w+` \| (counter|gauge|histogram) ", line)
    ]
    assert rows == [
        f"| `{metric.name}` | {metric.kind} | {metric.unit} | "
        f"{', '.join(f'`{label}`' for label in metric.labels)} "
        f"| {metric.description} |"
        for metric in (*OWN, *ENGINE, *GATEWAY)
    ]
    for bounds in (BUCKETS, WAIT_BUCKETS_S):
        assert ", ".join(f"{bound:g}" for bound in bounds) in " ".join(DOCUMENT.split())


# Rules, dashboard and examples


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expression_names_only_metrics_that_there_are(name):
    used = metrics_in(EXPRESSIONS[name])
    assert used or "up{" in EXPRESSIONS[name] or "ALERTS{" in EXPRESSIONS[name]
    assert used <= declared_names()


def test_metrics_in_finds_a_name_that_is_none():
    expression = (
        'sum by (stage) (rate(segserve_gone_total{error="x"}[5m] offset 1h)) / 2 or on (a) other'
    )
    assert metrics_in(expression) == {"segserve_gone_total", "other"}


def test_rules_alerts_say_how_bad_and_what_to_look_at():
    alerts = [rule for rule in RULES if "alert" in rule]
    assert {alert["alert"] for alert in alerts} == {
        *(
            "SegserveDown",
            "SegserveErrors",
            "SegserveSlow",
            "SegserveQueueGrows",
            "SegserveWorkerRestarts",
        ),
        *("SegserveClassDrift", "SegserveConfidenceDrop", "SegserveAllBackground"),
    }
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert set(alert["annotations"]) == {"summary", "description"}


def test_rules_every_alert_is_tested():
    tests = (RULES_FILE.with_name("alerts_test.yaml")).read_text()
    assert {rule["alert"] for rule in RULES if "alert" in rule} <= set(
        re.findall(r"Segserve\w+", tests)
    )


def test_dashboard_is_one_that_grafana_takes():
    assert DASHBOARD["uid"] == "segserve"
    assert DASHBOARD["title"]
    assert DASHBOARD["schemaVersion"] >= 36
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(?!__)(\w+)", json.dumps(DASHBOARD))) <= variables


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_dashboard_panel_has_targets_a_unit_and_a_description(panel):
    assert panel["targets"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        assert target["expr"]
        assert target["legendFormat"]
        assert target["datasource"]["uid"] == "${datasource}"


def test_dashboard_panels_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_dashboard_shows_every_own_metric():
    shown = json.dumps(DASHBOARD) + "".join(rule["expr"] for rule in RULES)
    assert [metric.name for metric in (*OWN, *GATEWAY) if metric.name not in shown] == []


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    return found


def test_rules_pass_their_own_tests(promtool):
    result = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yaml"],
        cwd=RULES_FILE.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SUCCESS" in result.stdout


def test_expressions_are_promql(promtool, tmp_path):
    """Those of rules, dashboard and documentation, as rules of one file; Grafana's variables get
    values.
    """
    rules = [
        {
            "record": f"checked:{place}",
            "expr": re.sub(r"\$__\w+", "5m", expression).replace("$model", ".*"),
        }
        for place, expression in enumerate(EXPRESSIONS.values())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "checked", "rules": rules}]}))
    result = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(EXPRESSIONS)} rules found" in result.stdout
