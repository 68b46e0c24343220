"""The answer of a pilot on cases worked by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from coincide.study.pilot import PilotError, as_text, holm, margins, pilot_scores, sentence


def scores(**methods):
    """One row per method and replicate."""
    rows = [
        {"method": method, "replicate": replicate, "score": score}
        for method, values in methods.items()
        for replicate, score in enumerate(values)
    ]
    return pd.DataFrame(rows)


RANDOM = [50.0, 52.0, 48.0, 51.0, 49.0]


def plus(*differences):
    return [score + difference for score, difference in zip(RANDOM, differences)]


def test_holm_on_a_case_worked_by_hand():
    # 0.01 × 4, then 0.02 × 3, then 0.03 × 2, and 0.9 × 1; none is below an earlier one
    assert holm([0.9, 0.01, 0.03, 0.02]) == pytest.approx([0.9, 0.04, 0.06, 0.06])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([0.7, 0.8]) == pytest.approx([1, 1])


def test_margins_are_paired_by_replicate():
    table = margins(scores(random=RANDOM, a=plus(2, 2.2, 1.8, 2.1, 1.9), b=plus(-1, 1, -1, 1, 0)))
    a, b = table.itertuples()
    assert (a.method, b.method) == ("a", "b")
    assert (a.margin, b.margin) == (pytest.approx(2), pytest.approx(0))
    # t = 2 / (s / √5) with s² = 0.1 / 4
    p = 2 * stats.t.sf(2 / np.sqrt(0.1 / 4 / 5), 4)
    assert (a.p, a.p_holm) == (pytest.approx(p), pytest.approx(2 * p))
    assert (b.p, b.p_holm) == (pytest.approx(1), pytest.approx(1))
    assert 1.8 <= a.low < 2 < a.high <= 2.2
    assert (a.verdict, b.verdict) == ("better", "undecided")


def test_a_replicate_without_random_is_left_out():
    table = scores(random=RANDOM, a=plus(1, 2, 3, 4, 100))
    table = table[~((table["method"] == "random") & (table["replicate"] == 4))]
    (row,) = margins(table).itertuples()
    assert (row.margin, row.replicates) == (2.5, 4)


def test_replicates_that_agree_exactly_are_no_proof():
    (row,) = margins(scores(random=RANDOM, a=plus(1, 1, 1, 1, 1))).itertuples()
    assert (row.margin, row.low, row.high, row.p) == (1, 1, 1, 2**-4)
    assert row.verdict == "undecided"
    (row,) = margins(scores(random=RANDOM, a=RANDOM)).itertuples()
    assert (row.p, row.verdict) == (1, "undecided")


def test_without_random_there_is_no_answer():
    with pytest.raises(PilotError, match="add random"):
        margins(scores(a=RANDOM))


def test_the_sentence_names_what_beats_random_choice():
    good, bad = plus(2, 2.2, 1.8, 2.1, 1.9), plus(-2, -2.2, -1.8, -2.1, -1.9)
    also, noise = plus(1, 1.2, 0.8, 1.1, 0.9), plus(3, -3, 2, -2, 0.5)
    text = sentence(margins(scores(random=RANDOM, **{"coincide (even)": good}, b=bad, c=also, d=noise)))
    assert text.startswith("coincide (even) beats random choice by 2.0 (1.9 to 2.1) points on your data.")
    assert "So do: c by 1.0 (0.9 to 1.1)." in text
    assert "Worse than random choice: b." in text
    assert text.endswith(
        "4 methods and settings were compared with random choice; p values are corrected for that (Holm)."
    )


def test_what_passes_as_the_only_method_may_not_pass_among_many():
    almost = plus(1, 3, 2, 0.5, 2.5)
    (only,) = margins(scores(random=RANDOM, a=almost)).itertuples()
    assert only.verdict == "better"
    noise = {f"m{i}": plus(1, -1, 1, -1, 0.1 * i) for i in range(6)}
    table = margins(scores(random=RANDOM, a=almost, **noise))
    assert table.loc[0, "p"] == only.p < 0.05 < table.loc[0, "p_holm"] == pytest.approx(7 * only.p)
    text = sentence(table)
    assert text.startswith("No method beats random choice here: the largest margin is that of a, 1.8 (")
    assert "7 methods and settings" in text


def test_two_replicates_give_no_answer():
    text = sentence(margins(scores(random=RANDOM[:2], a=[60.0, 62.0])))
    assert text.startswith("No answer: 2 replicates are too few for intervals; set pilot.replicates to five")
    assert "that of a, +10.0 points" in text


def test_scores_are_averages_over_tasks_in_points():
    def table(method, *values):
        rows = [
            {"target": "t", "method": method, "fraction": 0.2, "seed": 0, "task": task, "score": value}
            for task, value in zip(("one", "two", "average"), values)
        ]
        return pd.DataFrame(rows)

    variants = {"p-0": ("", 0), "p-even-0": ("even", 0)}
    result = pilot_scores({"p-0": table("random", 0.4, 0.6, 9), "p-even-0": table("coincide", 0.2, 0.4, 9)}, variants)
    assert result["method"].tolist() == ["random", "coincide (even)"]
    assert result["base_method"].tolist() == ["random", "coincide"]
    assert result["score"].tolist() == pytest.approx([50, 30])


def test_the_text_has_the_answer_the_table_and_the_cost():
    table = margins(scores(random=RANDOM, a=plus(2, 2.2, 1.8, 2.1, 1.9))).assign(seconds=12.0)
    stages = [{"seconds": 3600.0, "device_seconds": 3000.0}, {"seconds": 36.0, "device_seconds": 0.0}]
    text = as_text(table, 50.0, design="A design.", stages=stages)
    assert text.startswith("a beats random choice by 2.0")
    assert "| a | 52.0 | 2.0 (1.9 to 2.1) | 5 |" in text
    assert "Cost: 3,636 seconds of jobs (1 hours), 3,000 of them" in text


def test_models_that_learned_nothing_are_named():
    table = margins(scores(random=[0, 0, 0.1], a=[0, 0.2, 0])).assign(seconds=1.0)
    text = as_text(table, 0.03, design="", stages=[])
    assert text.startswith("Warning: no model scores 1 point or more, so that nothing can differ; raise pilot.epochs")
    assert "Warning" not in as_text(table, 30.0, design="", stages=[])
