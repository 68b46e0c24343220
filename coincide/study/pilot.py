"""The pilot: which method beats random choice on a subsample of the user's own data.

Every method is compared with random choice over the same replicates (seeds) and the same questions. The score of a
model is the mean over tasks of the mean over their questions.

- **Replicates.** Methods and replicates are a two-way table of scores. Its residual variance, with (methods - 1) ·
  (replicates - 1) degrees of freedom, says how much a score varies with clusters, draws and training; pooling it over
  methods gives few replicates more degrees of freedom.
- **Questions.** Other questions of the same data would give another difference. The variance of the differences between
  questions, without the part that also varies between replicates and is in the residual variance already, is added.
- **Many methods.** Dunnett (1955): intervals and p values hold for all comparisons with random choice together. If no
  method differs from it, the chance that any of them is said to is 5%.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats

from coincide.base.errors import UserError
from coincide.base.markdown import markdown_table
from coincide.reporting.costs import FULL
from coincide.reporting.summary import AVERAGE, KEYS

RANDOM = "random"
CONFIDENCE = 0.95
CORRELATION = 0.5  # of two differences from the same control
LEAST_SCORE = 1.0  # points; where no method reaches it, the model has learned nothing that could differ
BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"


class PilotError(UserError):
    """Answers that cannot be compared with those of random choice."""


def margins(answers: pd.DataFrame) -> pd.DataFrame:
    """Margin of every method over random choice, paired by replicate and question.

    Args:
        answers: table of method, replicate, task, question, score (0 to 1): one row per answer.

    Returns:
        one row per method but random, the largest margin first: method, score, random (mean scores, in points of 100),
        margin (score minus random), low, high (its 95% interval, for all comparisons together), p (two-sided, adjusted
        in the same way), error (standard error of the margin), degrees (of freedom), replicates, questions, verdict
        (better or worse if the interval excludes zero, else undecided).

    Raises:
        PilotError: there is no random choice, fewer than two replicates, or a model without an answer to a question.

    Source: Dunnett, A multiple comparison procedure for comparing several treatments with a control, 1955.
    """
    wide = answers.pivot_table(index=["task", "question"], columns=["method", "replicate"], values="score")
    methods = [RANDOM, *sorted(set(answers["method"]) - {RANDOM})]
    replicates = sorted(answers["replicate"].unique())
    missing = [f"{m} ({r})" for m in methods for r in replicates if (m, r) not in wide or wide[m, r].isna().any()]
    if missing or len(replicates) < 2 or len(methods) < 2:
        raise PilotError(
            f"cannot compare: {len(methods) - 1} methods and random choice, {len(replicates)} replicates; models "
            f"without answers to all questions: {', '.join(missing) or 'none'}"
        )
    # (questions, methods, replicates), random choice first
    values = 100 * np.stack([np.stack([wide[m, r] for r in replicates], axis=-1) for m in methods], axis=1)
    tasks, names = pd.factorize(wide.index.get_level_values("task"))
    weights = 1 / (np.bincount(tasks)[tasks] * len(names))
    scores = np.einsum("q,qmr->mr", weights, values)
    variance, degrees = _replicate_variance(scores)
    critical = critical_value(len(methods) - 1, degrees)
    rows = []
    for method, of_method, answered in zip(methods[1:], scores[1:], np.moveaxis(values, 1, 0)[1:]):
        margin = (of_method - scores[0]).mean()
        error = np.sqrt(variance + _question_variance(answered - values[:, 0], tasks))
        low, high = margin - critical * error, margin + critical * error
        rows.append(
            {"method": method, "score": of_method.mean(), "random": scores[0].mean(), "margin": margin, "low": low,
             "high": high,
             "p": adjusted_p_value(margin / error, len(methods) - 1, degrees) if error else float(margin == 0),
             "error": error, "degrees": degrees, "replicates": len(replicates), "questions": len(values),
             "verdict": BETTER if low > 0 else WORSE if high < 0 else UNDECIDED}
        )  # fmt: skip
    return pd.DataFrame(rows).sort_values("margin", ascending=False, kind="stable", ignore_index=True)


def _replicate_variance(scores: NDArray) -> tuple[float, int]:
    """Variance of the difference of two mean scores, from (methods, replicates) scores, and its degrees of freedom."""
    methods, replicates = scores.shape
    residual = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
    degrees = (methods - 1) * (replicates - 1)
    return 2 * (residual**2).sum() / degrees / replicates, degrees


def _question_variance(differences: NDArray, tasks: NDArray) -> float:
    """Variance of the mean difference by the choice of questions alone, from (questions, replicates).

    In each task, the variance between questions of their mean over replicates, minus what it has from the interaction
    of questions and replicates; 0 where that is more.
    """
    replicates, count = differences.shape[1], tasks.max() + 1
    total = 0.0
    for task in range(count):
        of_task = differences[tasks == task]
        n = len(of_task)
        if n < 2:
            continue
        means = of_task.mean(axis=1)
        interaction = of_task - means[:, None] - of_task.mean(axis=0) + means.mean()
        within = (interaction**2).sum() / ((n - 1) * (replicates - 1))
        total += (means.var(ddof=1) - within / replicates) / (n * count**2)
    return max(total, 0.0)


def _coverage(limit, comparisons, degrees):
    """Probability that the largest absolute t value of all comparisons with one control is below a limit."""
    correlations = np.full((comparisons, comparisons), CORRELATION)
    np.fill_diagonal(correlations, 1)
    t = stats.multivariate_t(shape=correlations, df=degrees, seed=0)
    bound = np.full(comparisons, float(limit))
    # the integral is estimated with random points: the same ones each time
    return float(t.cdf(bound, lower_limit=-bound, random_state=0, maxpts=20_000 * comparisons))


@cache
def critical_value(comparisons: int, degrees: int) -> float:
    """Two-sided critical value of Dunnett's test at CONFIDENCE, for equal group sizes.

    >>> round(critical_value(1, 10), 2)  # Student's t
    2.23
    """
    single = stats.t.ppf((1 + CONFIDENCE) / 2, degrees)
    bonferroni = stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * comparisons), degrees)
    if comparisons == 1:
        return float(single)
    return float(
        optimize.brentq(lambda x: _coverage(x, comparisons, degrees) - CONFIDENCE, single, 1.05 * bonferroni, xtol=1e-3)
    )


def adjusted_p_value(t: float, comparisons: int, degrees: int) -> float:
    """p of one comparison of Dunnett's test, adjusted for all of them."""
    if comparisons == 1:
        return float(2 * stats.t.sf(abs(t), degrees))
    return min(1.0, max(0.0, 1 - _coverage(abs(t), comparisons, degrees)))


def sentence(table: pd.DataFrame) -> str:
    """The answer of the pilot in words: what beats random choice, or that nothing does and what would have been seen.

    Args:
        table: of `margins`.
    """
    better, worse = (table[table["verdict"] == verdict] for verdict in (BETTER, WORSE))
    best = table.iloc[0]
    if len(better):
        text = f"{best.method} beats random choice by {_in_points(best)} points on your data."
        if len(better) > 1:
            others = "; ".join(f"{row.method} by {_in_points(row)}" for row in better.iloc[1:].itertuples())
            text += f" So do: {others}."
    else:
        smallest = (table["high"] - table["low"]).median() / 2
        text = (
            f"No method beats random choice here: the largest margin is that of {best.method}, {_in_points(best)} "
            f"points. The pilot could not have told margins below about {smallest:.1f} points from chance; more "
            "pilot.replicates or pilot.samples can."
        )
    if len(worse):
        text += f" Worse than random choice: {', '.join(worse['method'])}."
    return text


def _in_points(row):
    """Text such as "1.2 (0.3 to 2.1)"."""
    return f"{row.margin:.1f} ({row.low:.1f} to {row.high:.1f})"


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


def as_text(table: pd.DataFrame, *, design: str, stages: Sequence[Mapping[str, Any]]) -> str:
    """The answer, the table and the cost, as Markdown.

    Args:
        table: of `margins`, with a column seconds: job time of one model, selection and training included.
        design: a sentence on what was compared.
        stages: of `coincide.reporting.costs.stage_times`.
    """
    rows = [
        {
            "method": row.method,
            "score": f"{row.score:.1f}",
            "margin over random, points": f"{_in_points(row)}",
            "p": f"{row.p:.2g}",
            "verdict": row.verdict,
            "seconds": f"{row.seconds:.0f}",
        }
        for row in table.itertuples()
    ]
    total, on_device = (sum(stage[key] for stage in stages) for key in ("seconds", "device_seconds"))
    warning = []
    if table[["score", "random"]].max(axis=None) < LEAST_SCORE:
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
            f"random scores {table['random'].iloc[0]:.1f}. Margins are paired by replicate and question. Their "
            "intervals and p values hold for all comparisons together (Dunnett): if no method differed from random "
            "choice, 5% of pilots would have an interval without zero. Seconds: scoring, selection and finetuning of "
            "one model.",
            f"Cost: {total:,.0f} seconds of jobs ({total / 3600:.2g} hours), {on_device:,.0f} of them in jobs that "
            "run a model.",
        ]
    ) + "\n"  # fmt: skip
