"""The README's list of models, from docs/models.json: the replicas on which the whole workflow passed, and SmolLM2.

`make test-models` runs the workflow on each and records which pass; `make models` writes the list.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs/models.json"
README = ROOT / "README.md"
START, END = "<!-- models: make models -->", "<!-- end of models -->"


def record_pass(table, name, date):
    """Record that the whole workflow passed on a replica.

    Args:
        table: path of the JSON file.
        name: of the checkpoint on the hub.
        date: of the run.
    """
    passed = json.loads(table.read_text()) if table.exists() else {}
    passed[name] = date
    table.write_text(json.dumps(dict(sorted(passed.items())), indent=2) + "\n")


def model_list(passed, families):
    """The list in Markdown.

    Args:
        passed: dict of checkpoint -> date.
        families: dict of checkpoint -> family.
    """
    lines = ["| checkpoint | family | whole workflow passed |", "| --- | --- | --- |"]
    lines += [f"| {name} | {families[name]} | {date} |" for name, date in sorted(passed.items())]
    return "\n".join(lines)


def families():
    """dict of checkpoint -> family, of all that `make test-models` runs."""
    from pretrained import NAME
    from replicas import REPLICAS

    replicas = {replica.name: replica.family for replica in REPLICAS.values()}
    return replicas | {NAME: "llava, assembled with this pretrained decoder"}


def with_list(readme, text):
    """The README with a new list."""
    before, rest = readme.split(START)
    return f"{before}{START}\n\n{text}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    README.write_text(with_list(README.read_text(), model_list(json.loads(TABLE.read_text()), families())))
