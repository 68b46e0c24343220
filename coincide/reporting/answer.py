"""The answer of a report: may one train on the coreset?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from coincide.base.intervals import interval
from coincide.reporting.summary import AVERAGE

ENOUGH = 0.95  # relative performance of a coreset that replaces the full data
RANDOM, FULL = "random", "full"
REPLICATE = ["target", "seed"]


def compare_methods(summary: pd.DataFrame) -> pd.DataFrame:
    """Relative performance of every method and its difference to random selection, averaged over tasks.

    Args:
        summary: table of `coincide.reporting.summary.relative_performance`.

    Returns:
        one row per method and fraction, the full data first and random last: method, fraction, score, mean, low, high
        (relative performance with its 95% interval over models), models (how many), difference, difference_low,
        difference_high (relative performance minus that of random selection at the same fraction, paired by target and
        seed; NaN for "full" and "random"), pairs. Intervals are NaN for fewer than three models.
    """
    average = summary[summary["task"] == AVERAGE].set_index(REPLICATE)
    rows = []
    for (method, fraction), group in average.groupby(["method", "fraction"]):
        mean, low, high = interval(group["relative_performance"])
        random = average[(average["method"] == RANDOM) & (average["fraction"] == fraction)]
        differences = np.array([])
        if method not in (RANDOM, FULL):
            differences = (group["relative_performance"] - random["relative_performance"]).dropna().to_numpy()
        difference, difference_low, difference_high = interval(differences)
        rows.append(
            {"method": method, "fraction": fraction, "score": group["score"].mean(),
             "mean": mean, "low": low, "high": high, "models": len(group),
             "difference": difference, "difference_low": difference_low, "difference_high": difference_high,
             "pairs": len(differences)}
        )  # fmt: skip
    rows.sort(key=lambda row: (row["method"] != FULL, row["method"] == RANDOM, row["method"], -row["fraction"]))
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Answer:
    """Whether one may train on a coreset.

    Attributes:
        level: "yes", "unsure" or "no".
        headline: the answer in one sentence.
        reason: what it is based on.
    """

    level: str
    headline: str
    reason: str


def answer(comparison: pd.DataFrame, method: str, fraction: float) -> Answer:
    """May one train on the coreset of a method at a fraction, instead of the full data?

    Yes if the mean relative performance is at least 95% and the interval of the difference to random selection is
    above zero. No if that interval is below zero or, without an interval, if random selection scores at least as high.

    Args:
        comparison: table of `compare_methods`.
        method, fraction: a row of the table.
    """
    rows = comparison[(comparison["method"] == method) & (comparison["fraction"] == fraction)]
    row = None if rows.empty else rows.iloc[0]
    if row is None or np.isnan(row["mean"]):
        return Answer(
            "unsure",
            "Not known: there is no relative performance.",
            "It needs a model that is finetuned on the full data and that learns at least one task.",
        )
    performance = f"The coreset reaches {row['mean']:.1%} of the performance of the full data"
    models = f"{row['models']} finetuned models" if row["models"] > 1 else "one finetuned model (one seed)"
    if not row["pairs"]:
        return Answer(
            "unsure",
            "Not known: the coreset was not compared with random selection.",
            f"{performance}, measured with {models}.",
        )
    has_interval = not np.isnan(row["difference_low"])
    is_better = row["difference_low"] > 0 if has_interval else row["difference"] > 0
    is_worse = row["difference_high"] < 0 if has_interval else row["difference"] <= 0
    points = (
        f"{100 * abs(row['difference']):.1f} points {'above' if row['difference'] > 0 else 'below'} random selection"
    )
    if row["difference"] == 0:
        points = "the same as random selection"
    reason = f"{performance}, {points} of the same size, measured with {models}."
    if is_worse:
        return Answer("no", "Not yet: random selection does as well or better.", reason)
    if not has_interval:
        return Answer(
            "unsure", "Perhaps: it is above random selection, but with too few seeds to exclude chance.", reason
        )
    if not is_better:
        return Answer("unsure", "Not certain: the difference to random selection may be chance.", reason)
    if row["mean"] < ENOUGH:
        return Answer(
            "unsure", f"With a loss: it beats random selection, but not {ENOUGH:.0%} of the full data.", reason
        )
    return Answer("yes", "Yes: it performs almost like the full data, and better than random selection.", reason)
