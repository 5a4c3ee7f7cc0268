"""docs/operations.md says all there is to say of variables and alerts."""

import re

import yaml

from segserve.gateway.settings import GatewaySettings, variables
from tests.conftest import PROJECT

PAGE = (PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_operations_page_has_a_row_for_every_variable_with_its_default():
    rows = dict(re.findall(r"^\| `(SEGSERVE_\w+)` \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE))
    assert tuple(rows) == variables()
    for name, field in zip(variables(), GatewaySettings.model_fields.values(), strict=True):
        default = (
            ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        )
        reported = rows[name].strip("`")
        assert reported == "none" if default is None else reported == f"{default}", name


def test_operations_page_says_what_to_do_about_every_alert():
    rules = yaml.safe_load(
        (PROJECT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
    )
    alerts = [
        rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule
    ]
    assert re.findall(r"^\| `(Segserve\w+)` \|", PAGE, re.MULTILINE) == alerts
