"""Every public target resolves to jobs, and every script belongs to the rule of the same name."""

import re

import pytest
from conftest import REPO

TARGETS = (
    "check",
    "estimate",
    "select",
    "export",
    "browse",
    "finetune",
    "evaluate",
    "report",
    "comparison",
    "compare",
    "transfer_check",
)
SMALL = REPO / "tests/config/small.yaml"
STUDY = REPO / "config/study-small.yaml"
CONFIGS = {"comparison": STUDY, "compare": STUDY}  # which require several runs


def rule_bodies():
    """dict of rule -> its source."""
    bodies = {}
    for path in [REPO / "Snakefile", *(REPO / "rules").glob("*.smk")]:
        names_and_bodies = re.split(r"^(?:rule|checkpoint) (\w+):$", path.read_text(), flags=re.MULTILINE)[1:]
        bodies |= dict(zip(names_and_bodies[::2], names_and_bodies[1::2]))
    return bodies


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_resolves_in_a_dry_run(workplace, target):
    code, output = workplace.run(target, "-n", config=CONFIGS.get(target, SMALL))
    assert code == 0, output
    job_counts = re.findall(r"^(\w+) +(\d+)$", output, flags=re.MULTILINE)
    assert (target, "1") in job_counts, output


def test_rules_without_output_are_public_targets():
    collecting = {rule for rule, body in rule_bodies().items() if "output:" not in body}
    assert collecting <= {*TARGETS, "all"}


def test_a_rule_and_its_script_have_the_same_name():
    scripts = {
        rule: re.search(r'^ +"\.\./workflow_scripts/(\w+)\.py"$', body, flags=re.MULTILINE)
        for rule, body in rule_bodies().items()
        if "    script:\n" in body
    }
    assert {rule: script and script[1] for rule, script in scripts.items()} == {rule: rule for rule in scripts}
    assert set(scripts) == {path.stem for path in (REPO / "workflow_scripts").glob("*.py")}
