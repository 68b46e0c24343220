"""config/README.md lists every setting as the sections define it."""

import re

from conftest import REPO

from coincide.base.sections import Config, Section
from coincide.workflow.config_reference import nested_section, reference


def leaf_keys(section, prefix=""):
    """Names of all settings, without list and mapping markers."""
    for name, field in section.model_fields.items():
        nested = nested_section(field.annotation)
        yield from leaf_keys(nested, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]


def test_the_committed_file_is_current():
    assert (REPO / "config/README.md").read_text() == reference(), "run `make schema`"


def test_every_setting_has_one_row():
    section, listed = "", []
    for line in reference().splitlines():
        if heading := re.match(r"## `?(\w+)", line):
            section = "" if heading[1] == "Runs" else f"{heading[1]}."
        if row := re.match(r"\| `(\S+)` \|", line):
            listed.append(section + row[1].replace("[]", "").replace("<name>.", ""))
    assert len(listed) == len(set(listed))
    assert set(leaf_keys(Config)) <= set(listed)


def test_rows_say_what_a_setting_reruns():
    rows = {row[1]: row[0] for row in re.finditer(r"^\| `(\S+)` \|.*$", reference(), flags=re.MULTILINE)}
    assert rows["training.epochs"].endswith(
        "| number > 0 | `1.0` | passes over the data | difficulty, finetune_model |"
    )
    assert rows["<name>.training.epochs"].endswith("| passes over the data | tiny_model |")
    assert rows["training.save_every"].endswith("| no results change |")
    assert rows["fractions"].endswith("| new values only |")
    assert "| list of 0 < number ≤ 1, not empty | required |" in rows["fractions"]
    assert rows["annotations"].endswith("| manifest |")


def test_sections_are_found_inside_lists_dicts_and_optionals():
    assert nested_section(list[dict[str, Section | None]]) is Section
    assert nested_section(list[str] | None) is None
