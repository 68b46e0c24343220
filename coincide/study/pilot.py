"""The pilot: which method beats random choice on a subsample of the user's own data.

Differences are paired by replicate: the runs of a replicate share held-out questions, samples and seeds. Several
methods are compared with random choice, so that one may look better by chance; Holm's procedure corrects for that.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from coincide.base.errors import UserError
from coincide.base.intervals import interval
from coincide.base.markdown import markdown_table
from coincide.reporting.costs import FULL
from coincide.reporting.summary import AVERAGE, KEYS
from coincide.study.comparison import sign_flip_p_value

RANDOM = "random"
LEAST_SCORE = 1.0  # points; where no method reaches it, the model has learned nothing that could differ
LEVEL = 0.05  # chance that any method is wrongly said to differ from random choice
FEWEST_REPLICATES = 3  # of an interval
BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"


class PilotError(UserError):
    """A pilot without random choice to compare with."""


def pilot_scores(summaries: Mapping[str, pd.DataFrame], variants: Mapping[str, tuple[str, int]]) -> pd.DataFrame:
    """Score of every model, averaged over tasks.

    Args:
        summaries: run -> table of `coincide.reporting.summary.relative_performance`.
        variants: run -> (variant, replicate); the variant of the config's own settings is "".

    Returns:
        one row per model: run, target, seed, replicate, base_method, method (with its variant in parentheses),
        fraction, task ("average"), score in points (0 to 100).
    """
    tables = []
    for run, table in summaries.items():
        variant, replicate = variants[run]
        scores = table[(table["task"] != AVERAGE) & (table["method"] != FULL)]
        scores = scores.groupby(KEYS, as_index=False)["score"].mean()
        method = scores["method"] + f" ({variant})" if variant else scores["method"]
        tables.append(
            scores.assign(
                run=run, replicate=replicate, base_method=scores["method"], method=method, task=AVERAGE,
                score=100 * scores["score"],
            )
        )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def margins(scores: pd.DataFrame) -> pd.DataFrame:
    """Margin of every method over random choice, paired by replicate.

    Args:
        scores: table with replicate, method and score in points, one row per model.

    Returns:
        one row per method but random, the largest margin first: method, score (mean), margin (mean difference to
        random), low, high (its 95% bootstrap interval; NaN below three replicates), replicates, p (of the paired
        t-test, two-sided; see `_p_value`), p_holm (corrected for the number of methods), verdict (better, worse or
        undecided: p_holm at most 0.05 and an interval on one side of zero).

    Raises:
        PilotError: random choice has no score.
    """
    wide = scores.pivot_table(index="replicate", columns="method", values="score")
    if RANDOM not in wide:
        raise PilotError("the pilot has no scores of random; add random to pilot.methods")
    rows = []
    for method in [name for name in wide if name != RANDOM]:
        differences = (wide[method] - wide[RANDOM]).dropna().to_numpy()
        margin, low, high = interval(differences)
        rows.append(
            {"method": method, "score": wide[method].mean(), "margin": margin, "low": low, "high": high,
             "replicates": len(differences), "p": _p_value(differences)}
        )  # fmt: skip
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"])
    is_decided = table["p_holm"] <= LEVEL
    table["verdict"] = UNDECIDED
    table.loc[is_decided & (table["low"] > 0), "verdict"] = BETTER
    table.loc[is_decided & (table["high"] < 0), "verdict"] = WORSE
    return table.sort_values("margin", ascending=False, kind="stable", ignore_index=True)


def _p_value(differences):
    """p of the paired t-test; 1 below three replicates.

    The sign-flip test cannot go below 2^(1 - replicates), so that no method of many could ever pass. Where all
    replicates agree exactly, which scores of few questions may do by chance, the t-test has no variance to go by, and
    the sign-flip test is taken.
    """
    if len(differences) < FEWEST_REPLICATES:
        return 1.0
    if np.ptp(differences) < 1e-9:
        return sign_flip_p_value(differences)
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # differences that are almost constant
        return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p values corrected for their number, in the same order.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


def sentence(table: pd.DataFrame) -> str:
    """The answer of the pilot in words.

    Args:
        table: of `margins`.
    """
    best, count = table.iloc[0], len(table)
    tried = f"{count} methods and settings were" if count > 1 else "One method was"
    if table["replicates"].max() < FEWEST_REPLICATES:
        return (
            f"No answer: {table['replicates'].max()} replicates are too few for intervals; set pilot.replicates to "
            f"five or more seeds. The largest margin over random choice is that of {best.method}, {best.margin:+.1f} "
            "points, which may be chance."
        )
    better, worse = (table[table["verdict"] == verdict] for verdict in (BETTER, WORSE))
    if len(better):
        first, *others = (f"{row.method} beats random choice by {_in_points(row)}" for row in better.itertuples())
        text = f"{first} points on your data."
        if others:
            text += " So do: " + "; ".join(f"{row.method} by {_in_points(row)}" for row in better.iloc[1:].itertuples())
            text += "."
    else:
        text = (
            f"No method beats random choice here: the largest margin is that of {best.method}, {_in_points(best)} "
            f"points (p = {best.p_holm:.2g} after correction)."
        )
    if len(worse):
        text += f" Worse than random choice: {', '.join(worse['method'])}."
    return f"{text} {tried} compared with random choice; p values are corrected for that (Holm)."


def _in_points(row):
    """Text such as "1.2 (0.3 to 2.1)"."""
    text = f"{row.margin:.1f}"
    return f"{text} ({row.low:.1f} to {row.high:.1f})" if np.isfinite(row.low) else text


def as_text(table: pd.DataFrame, random_score: float, *, design: str, stages: Sequence[Mapping[str, Any]]) -> str:
    """The answer, the table and the cost, as Markdown.

    Args:
        table: of `margins`, with a column seconds: job time of one model, selection and training included.
        random_score: mean score of random choice, in points.
        design: a sentence on what was compared.
        stages: of `coincide.reporting.costs.stage_times`.
    """
    rows = [
        {
            "method": row.method,
            "score": f"{row.score:.1f}",
            "margin over random, points": f"{_in_points(row)}",
            "replicates": row.replicates,
            "p": f"{row.p:.2g}",
            "p, corrected": f"{row.p_holm:.2g}",
            "verdict": row.verdict,
            "seconds": f"{row.seconds:.0f}",
        }
        for row in table.itertuples()
    ]
    total, on_device = (sum(stage[key] for stage in stages) for key in ("seconds", "device_seconds"))
    warning = []
    if max(random_score, table["score"].max()) < LEAST_SCORE:
        warning.append(
            f"Warning: no model scores {LEAST_SCORE:g} point or more, so that nothing can differ; raise pilot.epochs, "
            "pilot.learning_rate or pilot.samples."
        )
    return "\n\n".join(
        [
            *warning,
            sentence(table),
            design,
            markdown_table(pd.DataFrame(rows)),
            f"random scores {random_score:.1f}. Margins are means over replicates of paired differences, with their "
            "95% bootstrap interval; p is that of the paired t-test, corrected by Holm's procedure. Seconds: scoring, "
            "selection and finetuning of one model.",
            f"Cost: {total:,.0f} seconds of jobs ({total / 3600:.2g} hours), {on_device:,.0f} of them in jobs that "
            "run a model.",
        ]
    ) + "\n"  # fmt: skip
