"""The README's list of models is that of the replicas on which the whole workflow passed."""

import json

from model_list import README, TABLE, families, model_list, record_pass, with_list


def test_the_readme_lists_what_passed():
    passed = json.loads(TABLE.read_text())
    known = families()
    assert passed.keys() <= known.keys()
    text = README.read_text()
    assert with_list(text, model_list(passed, known)) == text, "run make models"
    assert all(f"| {name} |" in text for name in passed)
    assert not any(f"| {name} |" in text for name in known.keys() - passed.keys())


def test_a_pass_is_recorded(tmp_path):
    record_pass(tmp_path / "table.json", "b", "2026-01-02")
    record_pass(tmp_path / "table.json", "a", "2026-01-03")
    passed = json.loads((tmp_path / "table.json").read_text())
    assert list(passed.items()) == [("a", "2026-01-03"), ("b", "2026-01-02")]
    assert "| a | llava | 2026-01-03 |" in model_list(passed, {"a": "llava", "b": "llava"})
