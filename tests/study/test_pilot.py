"""The answer of a pilot on cases worked by hand, and against a slow version of its variances."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from coincide.study.pilot import PilotError, adjusted_p_value, as_text, critical_value, margins, pilot_scores, sentence


def answers(**methods):
    """Answers of one task: for each method, a (replicates, questions) array of scores."""
    rows = [
        {"method": method, "replicate": replicate, "task": "t", "question": question, "score": score}
        for method, values in methods.items()
        for replicate, scores in enumerate(np.asarray(values, float))
        for question, score in enumerate(scores)
    ]
    return pd.DataFrame(rows)


def drawn(margin, *, methods=1, replicates=5, questions=400, seed=0):
    """Answers that are right with probability 0.5 for random choice, and with 0.5 + margin for a, b, …"""
    rng = np.random.default_rng(seed)
    draw = {"random": rng.random((replicates, questions)) < 0.5}
    for name in "abcdefgh"[:methods]:
        draw[name] = rng.random((replicates, questions)) < 0.5 + margin
    return answers(**draw)


@pytest.mark.parametrize(
    ("comparisons", "degrees", "published"),
    # Dunnett (1964), New tables for multiple comparisons with a control, two-sided, 95%
    [(1, 10, 2.23), (2, 10, 2.57), (3, 10, 2.76), (4, 20, 2.65), (5, 20, 2.73), (3, 120, 2.38)],
)
def test_critical_values_are_those_of_dunnetts_tables(comparisons, degrees, published):
    value = critical_value(comparisons, degrees)
    assert value == pytest.approx(published, abs=0.012)
    assert adjusted_p_value(value, comparisons, degrees) == pytest.approx(0.05, abs=0.002)


def test_margins_on_a_case_worked_by_hand():
    # Scores in points: random 50, 50; a 100, 50. Margins 50 and 0, mean 25.
    table = margins(answers(random=[[1, 0], [0, 1]], a=[[1, 1], [1, 0]]))
    (row,) = table.itertuples()
    assert (row.score, row.random, row.margin) == (75, 50, 25)
    # The four scores without their row and column means: ±12.5, so 4 · 12.5² with one degree of freedom, times 2 / 2.
    # Questions: differences (0, 100) and (100, -100), whose means 50 and 0 vary by 1,250; the interaction
    # (±75) has 4 · 75² / 1 / 1, half of which is more than 1,250, so nothing is added.
    assert (row.error, row.degrees) == (pytest.approx(25), 1)
    assert row.high - row.margin == pytest.approx(25 * stats.t.ppf(0.975, 1))
    assert row.p == pytest.approx(0.5)  # t = 1 with one degree of freedom
    assert (row.replicates, row.questions, row.verdict) == (2, 2, "undecided")


def slow_error(table, method):
    """Standard error of a margin, one sum at a time; all tasks weigh the same."""
    methods, replicates = sorted(set(table["method"])), sorted(set(table["replicate"]))
    tasks = sorted(set(table["task"]))

    def mean(**fixed):
        part = table
        for name, value in fixed.items():
            part = part[part[name] == value]
        return 100 * np.mean([part.loc[part["task"] == task, "score"].mean() for task in tasks])

    residuals = [
        mean(method=m, replicate=r) - mean(method=m) - mean(replicate=r) + mean() for m in methods for r in replicates
    ]
    variance = sum(e**2 for e in residuals) / (len(methods) - 1) / (len(replicates) - 1) * 2 / len(replicates)
    extra = 0.0
    for task in tasks:
        part = table[table["task"] == task].pivot_table(
            index="question", columns=["method", "replicate"], values="score"
        )
        difference = 100 * (part[method] - part["random"])
        n = len(difference)
        rows, columns, whole = difference.mean(axis=1), difference.mean(axis=0), difference.to_numpy().mean()
        interaction = [
            (difference.loc[q, r] - rows[q] - columns[r] + whole) ** 2 for q in difference.index for r in replicates
        ]
        within = sum(interaction) / (n - 1) / (len(replicates) - 1)
        extra += (rows.var(ddof=1) - within / len(replicates)) / n / len(tasks) ** 2
    return np.sqrt(variance + max(extra, 0))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), replicates=st.integers(2, 4), methods=st.integers(1, 3))
def test_errors_are_those_of_a_slow_version(seed, replicates, methods):
    parts = [drawn(0.1, methods=methods, replicates=replicates, questions=n, seed=seed + n) for n in (5, 9)]
    table = pd.concat([part.assign(task=f"task {i}") for i, part in enumerate(parts)], ignore_index=True)
    result = margins(table)
    for row in result.itertuples():
        assert row.error == pytest.approx(slow_error(table, row.method))
        assert row.margin == pytest.approx(row.score - row.random)
        assert (row.verdict == "undecided") == (row.low <= 0 <= row.high)


def test_a_clear_margin_is_found_and_none_is_not_made_up():
    (row,) = margins(drawn(0.2)).itertuples()
    assert (row.verdict, row.p < 0.001) == ("better", True)
    assert abs(row.margin - 20) < 5
    (row,) = margins(drawn(-0.2)).itertuples()
    assert row.verdict == "worse"
    wrong = sum((margins(drawn(0.0, methods=4, seed=seed))["verdict"] != "undecided").any() for seed in range(100))
    assert wrong <= 12  # 5 are expected; 13 or more have a probability of 0.1%


def test_what_passes_as_the_only_method_may_not_pass_among_many():
    alone = margins(drawn(0.0, methods=1))
    many = margins(drawn(0.0, methods=8))
    t = 2.5
    assert adjusted_p_value(t, 1, 40) < 0.05 < adjusted_p_value(t, 8, 40)
    assert many.loc[0, "degrees"] == 8 * 4 > alone.loc[0, "degrees"] == 4


def test_answers_that_are_missing_are_named():
    table = drawn(0.1)
    with pytest.raises(PilotError, match=r"without answers to all questions: a \(3\)$"):
        margins(table[~((table["method"] == "a") & (table["replicate"] == 3) & (table["question"] == 7))])
    with pytest.raises(PilotError, match="0 methods and random choice"):
        margins(table[table["method"] == "random"])
    with pytest.raises(PilotError, match="1 replicates"):
        margins(table[table["replicate"] == 0])


def test_the_sentence_names_what_beats_random_choice():
    good, bad = drawn(0.2, seed=1), drawn(-0.2, seed=1)
    table = pd.concat(
        [
            good.replace({"method": {"a": "coincide (even)"}}),
            drawn(0.12, seed=1)[lambda rows: rows["method"] == "a"],
            bad[bad["method"] == "a"].assign(method="b"),
        ]
    )
    text = sentence(margins(table))
    assert text.startswith("coincide (even) beats random choice by ")
    assert " points on your data. So do: a by " in text
    assert text.endswith("Worse than random choice: b.")
    text = sentence(margins(drawn(0.0)))
    assert text.startswith("No method beats random choice here: the largest margin is that of a, ")
    assert "could not have told margins below about" in text


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
    table = margins(drawn(0.2)).assign(seconds=12.0)
    stages = [{"seconds": 3600.0, "device_seconds": 3000.0}, {"seconds": 36.0, "device_seconds": 0.0}]
    text = as_text(table, design="A design.", stages=stages)
    assert text.startswith("a beats random choice by ")
    assert f"| a | {table.loc[0, 'score']:.1f} | {table.loc[0, 'margin']:.1f} (" in text
    assert f"random scores {table.loc[0, 'random']:.1f}." in text
    assert "Cost: 3,636 seconds of jobs (1 hours), 3,000 of them" in text


def test_models_that_learned_nothing_are_named():
    table = margins(drawn(-0.5, questions=50).assign(score=0.0)).assign(seconds=1.0)
    assert (table.loc[0, "p"], table.loc[0, "verdict"]) == (1, "undecided")
    text = as_text(table, design="", stages=[])
    assert text.startswith("Warning: no model scores 1 point or more, so that nothing can differ; raise pilot.epochs")
    assert "Warning" not in as_text(table.assign(random=30.0), design="", stages=[])
