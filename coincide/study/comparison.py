"""Comparison of methods over several runs: intervals, paired tests, ranks, areas and costs.

A replicate is a run and a finetuning seed. Replicates whose runs also differ in the seeds of clustering and selection
include the randomness of selection in the intervals, in addition to that of training. Runs with different settings
(variants) are compared as separate methods.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from coincide.base.errors import UserError
from coincide.base.intervals import RESAMPLES, interval
from coincide.base.markdown import markdown_table
from coincide.reporting.costs import COINCIDE, FULL
from coincide.reporting.summary import AVERAGE, average_over_tasks, short_names, unlearned_tasks

REPLICATE_KEYS = ["replicate", "target", "seed"]
EXACT_PAIRS = 14  # up to this many pairs, all sign patterns are enumerated


class ComparisonError(UserError):
    """The runs have nothing that can be compared."""


def combine_summaries(
    summaries: Mapping[str, pd.DataFrame],
    variants: Mapping[str, tuple[str, int]] | None = None,
    *,
    learned_above: float = 0.0,
) -> pd.DataFrame:
    """One table of the summaries of several runs.

    Averages are recomputed, so that they cover the same tasks in all replicates.

    Args:
        summaries: run -> table of `coincide.reporting.summary.relative_performance`.
        variants: run -> (variant, replicate); None: each run is a replicate of the same variant.
        learned_above: tasks on which the full-data models score no higher on average are left out of the averages.

    Returns:
        the rows of all tables, with additional columns run, replicate and base_method; method has the variant
        appended in parentheses, base_method does not.

    Raises:
        ComparisonError: there is no average relative performance to compare.
    """
    tables = []
    for i, (run, table) in enumerate(summaries.items()):
        variant, replicate = variants[run] if variants else ("", i)
        label = table["method"] + f" ({variant})" if variant else table["method"]
        label = label.where(table["method"] != FULL, FULL)
        tables.append(table.assign(run=run, replicate=replicate, base_method=table["method"], method=label))
    combined = pd.concat(tables, ignore_index=True)
    combined = combined[combined["task"] != AVERAGE]
    keys = ["run", *REPLICATE_KEYS, "base_method", "method", "fraction"]
    averages = average_over_tasks(combined, keys, unlearned_tasks(combined, learned_above))
    _check_comparable(averages, learned_above)
    return pd.concat([combined, averages], ignore_index=True)


def _check_comparable(averages, learned_above):
    if not (averages["method"] == FULL).any():
        raise ComparisonError(
            f"no relative performance to compare: none of the runs {', '.join(averages['run'].unique())} has a "
            "full-data model; set target_model.full to true"
        )
    if averages.loc[averages["method"] != FULL, "relative_performance"].isna().all():
        raise ComparisonError(
            "no relative performance to compare: no run has a coreset model together with a full-data model of the "
            f"same target that scores above evaluation.learned_above ({learned_above:g}) on any task; lower "
            "evaluation.learned_above, or train the full-data model for longer"
        )


def intervals(table: pd.DataFrame) -> pd.DataFrame:
    """Mean relative performance with its interval over replicates.

    Args:
        table: of `combine_summaries`.

    Returns:
        one row per method, fraction and task: mean, low, high, replicates (how many), score (mean).
    """
    rows = []
    for (method, fraction, task), group in table.groupby(["method", "fraction", "task"]):
        mean, low, high = interval(group["relative_performance"])
        rows.append(
            {"method": method, "fraction": fraction, "task": task, "mean": mean, "low": low, "high": high,
             "replicates": group["relative_performance"].notna().sum(), "score": group["score"].mean()}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _replicate_table(table):
    """Relative performance averaged over tasks: one row per replicate, columns (fraction, method)."""
    table = table[(table["task"] == AVERAGE) & (table["method"] != FULL)]
    return table.pivot_table(index=REPLICATE_KEYS, columns=["fraction", "method"], values="relative_performance")


def paired_tests(table: pd.DataFrame) -> pd.DataFrame:
    """Compare coincide with each other method, paired by replicate.

    Args:
        table: of `combine_summaries`.

    Returns:
        one row per method and fraction: difference (mean of coincide minus method, in relative performance), low, high
        (its interval), pairs, p (of `sign_flip_p_value`), least_p (the smallest p possible with this number of pairs).
        If there are several fractions, each method has an additional row with fraction NaN, where each replicate is
        averaged over fractions.
    """
    wide, rows = _replicate_table(table), []
    fractions, methods = (sorted(set(wide.columns.get_level_values(level))) for level in ("fraction", "method"))
    if COINCIDE not in methods:
        return pd.DataFrame()
    for method in methods:
        if method == COINCIDE:
            continue
        differences = {
            fraction: wide[fraction, COINCIDE] - wide[fraction, method]
            for fraction in fractions
            if (fraction, COINCIDE) in wide.columns and (fraction, method) in wide.columns
        }
        if len(differences) > 1:
            differences[np.nan] = pd.concat(differences.values(), axis=1).mean(axis=1)
        for fraction, difference in differences.items():
            values = difference.dropna().to_numpy()
            mean, low, high = interval(values)
            rows.append(
                {"method": method, "fraction": fraction, "difference": mean, "low": low, "high": high,
                 "pairs": len(values), "p": sign_flip_p_value(values), "least_p": 2.0 ** (1 - len(values))}
            )  # fmt: skip
    return pd.DataFrame(rows)


def sign_flip_p_value(differences: np.ndarray) -> float:
    """p of the two-sided sign-flip permutation test of paired differences.

    The p value is the fraction of sign patterns whose absolute mean is at least as large as the observed one: exact up
    to 14 pairs, estimated from random sign patterns with a fixed seed above that. NaN without differences.

    Args:
        differences: (pairs,) array.

    >>> sign_flip_p_value(np.array([0.1, 0.2, -0.1, 0.2]))
    0.375
    """
    if len(differences) < 2:  # scipy requires two observations; flipping the sign of one keeps its absolute value
        return 1.0 if len(differences) else np.nan

    def absolute_sum(values, axis):
        # Sums below 1e-12 are rounding errors of zero, and count as equal.
        return np.maximum(np.abs(values.sum(axis=axis)), 1e-12)

    test = stats.permutation_test(
        (differences,),
        absolute_sum,
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=np.inf if len(differences) <= EXACT_PAIRS else RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Mean rank of each method, and the area under its curve of relative performance over fractions.

    The area is divided by the span of the fractions, which makes it a mean over fractions. With a single fraction it
    is the relative performance itself.

    Args:
        table: of `combine_summaries`.

    Returns:
        one row per method, the largest area first: rank (1 is best; mean over replicates and fractions), area (mean
        over replicates), low, high (its interval).
    """
    wide = _replicate_table(table)
    rank = wide.stack("fraction", future_stack=True).rank(axis=1, ascending=False)
    fractions = np.array(sorted(set(wide.columns.get_level_values("fraction"))))
    rows = []
    for method in rank.columns:
        curves = wide.xs(method, axis=1, level="method").reindex(columns=fractions).dropna().to_numpy()
        mean, low, high = interval(_areas(curves, fractions))
        rows.append({"method": method, "rank": rank[method].mean(), "area": mean, "low": low, "high": high})
    return pd.DataFrame(rows).sort_values("area", ascending=False, ignore_index=True)


def _areas(curves, fractions):
    if len(fractions) == 1:
        return curves[:, 0]
    return np.trapezoid(curves, fractions, axis=1) / np.ptp(fractions)


def task_table(intervals: pd.DataFrame, unlearned: pd.Series) -> pd.DataFrame:
    """Mean relative performance of every method on every task.

    Args:
        intervals: table of `intervals`.
        unlearned: of `coincide.reporting.summary.unlearned_tasks`; these tasks are marked with a star.

    Returns:
        table of methods with their fraction, the best average first, and short names of tasks, "average" first. The
        longer of the two axes forms the rows. NaN where there is no relative performance.
    """
    wide = intervals[intervals["method"] != FULL].pivot_table(
        index=["method", "fraction"], columns="task", values="mean", dropna=False
    )
    wide = wide.dropna(how="all").sort_values(AVERAGE, ascending=False)
    tasks = [task for task in wide.columns if task != AVERAGE]
    starred = set(unlearned.index.get_level_values("task"))
    names = [f"{name} *" if task in starred else name for task, name in zip(tasks, short_names(tasks))]
    wide = wide[[AVERAGE, *tasks]].set_axis([AVERAGE, *names], axis=1)
    wide.index = [f"{method} {fraction:.3g}" for method, fraction in wide.index]
    return wide if len(wide) > len(tasks) else wide.T


def as_text(
    intervals: pd.DataFrame,
    tests: pd.DataFrame,
    ranking: pd.DataFrame,
    costs: pd.DataFrame,
    tasks: pd.DataFrame,
    unlearned: pd.Series,
) -> str:
    """The comparison as Markdown.

    Args:
        intervals: table of `intervals`.
        tests: of `paired_tests`.
        ranking: of `ranks`.
        costs: of `coincide.reporting.costs.costs`.
        tasks: of `task_table`.
        unlearned: of `coincide.reporting.summary.unlearned_tasks`.
    """
    average = intervals[(intervals["task"] == AVERAGE) & (intervals["method"] != FULL)]
    replicates = int(average["replicates"].max())
    introduction = (
        "Relative performance in percent, of one training each: no intervals, and differences may be chance."
        if replicates == 1
        else f"Relative performance, mean of {replicates} replicates, in percent, with the 95% bootstrap interval of "
        "the mean. Each replicate has its own clusters, random draws and training."
    )
    paragraphs = [
        introduction,
        markdown_table(_ranking_cells(average, ranking)),
    ]
    if len(unlearned):
        scores = ", ".join(f"{task} ({score:.2f})" for (_, task), score in unlearned.items())
        paragraphs.append(
            f"Left out of the average, because the full-data model did not learn them (its score): {scores}."
        )
    paragraphs += [
        "Difference in relative performance, coincide minus the other method, in percentage points, paired by "
        "replicate:",
        markdown_table(_test_cells(tests)),
        "Relative performance on each task, mean of the replicates, in percent (*: left out of the average):",
        markdown_table(_task_cells(tasks)),
        "Job time in seconds (of full: total relative to finetuning on the full data):",
        markdown_table(_cost_cells(costs)),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _ranking_cells(average, ranking):
    """One row per method: relative performance at each fraction, area and mean rank."""
    by_key = average.set_index(["method", "fraction"])[["mean", "low", "high"]]
    fractions = sorted(average["fraction"].unique())
    rows = []
    for row in ranking.itertuples():
        cells = {"method": row.method}
        for fraction in fractions:
            key = (row.method, fraction)
            cells[f"{fraction:g}"] = _format_interval(*by_key.loc[key]) if key in by_key.index else "–"
        rows.append(cells | {"area": _format_interval(row.area, row.low, row.high), "mean rank": f"{row.rank:.1f}"})
    return pd.DataFrame(rows)


def _test_cells(tests):
    rows = [
        [
            row.method,
            "all" if np.isnan(row.fraction) else f"{row.fraction:g}",
            _format_interval(row.difference, row.low, row.high, sign="+"),
            f"{row.p:.3f}",
            f"{row.least_p:.3f}",
            row.pairs,
        ]
        for row in tests.itertuples()
    ]
    return pd.DataFrame(rows, columns=["method", "fraction", "difference", "p", "smallest possible p", "pairs"])


def _task_cells(tasks):
    cells = tasks.map(lambda value: "–" if np.isnan(value) else f"{100 * value:.0f}")
    return cells.rename_axis(index="", columns=None).reset_index()


def _cost_cells(costs):
    rows = [
        [
            row.method,
            f"{row.fraction:g}",
            f"{row.scoring:.0f}",
            f"{row.selecting:.0f}",
            f"{row.finetuning:.0f}",
            f"{row.of_full:.0%}",
        ]
        for row in costs.itertuples()
    ]
    return pd.DataFrame(rows, columns=["method", "fraction", "scoring", "selecting", "finetuning", "of full"])


def _format_interval(mean, low, high, *, sign="-"):
    """Text such as "81.2 (79.0 to 83.1)", in percent; the mean only where there is no interval."""
    text = f"{100 * mean:{sign}.1f}"
    return f"{text} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})" if np.isfinite(low) else text
