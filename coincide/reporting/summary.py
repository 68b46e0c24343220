"""Scores of all models, relative performance, and the text that ends a run."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import pandas as pd

from coincide.base.markdown import markdown_table
from coincide.base.sections import Constraints
from coincide.evaluation.results import EvaluationError, read_failure, read_scores
from coincide.selection.constraints import outcome

AVERAGE = "average"  # the task name of the rows that average over tasks
KEYS = ["target", "method", "fraction", "seed"]
FEWEST_EXPECTED = 1  # samples of a source in an even coreset, below which none may be chance
UNDERREPRESENTED_BELOW = 0.25  # as a fraction of an even share


def read_results(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Read the scores of evaluation results.

    Args:
        paths: results.json files at …/<target>/<method>/<fraction>/<seed>/<group>/.

    Returns:
        table of target, method, fraction, seed, task, metric, score, higher_is_better.

    Raises:
        coincide.evaluation.results.EvaluationError: a task has no score, or every evaluation failed.
    """
    paths = list(paths)
    rows = []
    for path in paths:
        target, method, fraction, seed, _group, _ = Path(path).parts[-6:]
        for score in read_scores(path):
            rows.append({"target": target, "method": method, "fraction": float(fraction), "seed": int(seed), **score})
    if not rows:
        raise EvaluationError("\n".join(["no evaluation has scores", *failure_lines(paths)]))
    return pd.DataFrame(rows).drop_duplicates([*KEYS, "task"])


def failure_lines(paths: Iterable[str | Path]) -> list[str]:
    """One line of text per group of tasks that may fail and did.

    Args:
        paths: results.json files, as for `read_results`.
    """
    lines = []
    for path in paths:
        if failure := read_failure(path):
            target, method, fraction, seed, group, _ = Path(path).parts[-6:]
            model = f"{target} ({method}, fraction {fraction}, seed {seed})"
            lines.append(f"Warning: {model} has no scores of the group {group}: {failure['reason']}")
    return lines


def unlearned_tasks(scores: pd.DataFrame, learned_above: float) -> pd.Series:
    """Tasks that the full-data model did not learn; only tasks where a higher score is better.

    Args:
        scores: table with target, method, task, score, higher_is_better.
        learned_above: a task with a mean score of at most this is not learned.

    Returns:
        (target, task) -> mean score of the full-data models.
    """
    full = scores[(scores["method"] == "full") & scores["higher_is_better"] & (scores["task"] != AVERAGE)]
    score = full.groupby(["target", "task"])["score"].mean()
    return score[score <= learned_above]


def average_over_tasks(table: pd.DataFrame, keys: Sequence[str], unlearned: pd.Series) -> pd.DataFrame:
    """Rows of task "average".

    Args:
        table: with target, task, metric, score, relative_performance and the columns `keys`.
        keys: columns that identify a model.
        unlearned: result of `unlearned_tasks`.

    Returns:
        one row per model: mean score over all tasks, mean relative performance over the learned tasks. There is no
        mean score where the tasks have different metrics: a mean of MME's points and a share of right answers is
        neither.
    """
    learned = ~pd.MultiIndex.from_frame(table[["target", "task"]]).isin(unlearned.index)
    table = table.assign(relative_performance=table["relative_performance"].where(learned))
    by_model = table.groupby(list(keys), as_index=False)
    average = by_model[["score", "relative_performance"]].mean()
    average["score"] = average["score"].where(by_model["metric"].nunique()["metric"] == 1)
    return average.assign(task=AVERAGE, metric="mean", higher_is_better=True)


def relative_performance(scores: pd.DataFrame, *, learned_above: float = 0.0) -> pd.DataFrame:
    """Add relative performance and the average over tasks.

    The relative performance of a score is score ÷ score of the full-data model of the same target and
    task, averaged over seeds; the inverse for metrics where lower is better. It is missing where the
    full-data model scores zero or was not trained. The average is over the tasks that have one.

    Args:
        scores: table of `read_results`.
        learned_above: tasks on which the full-data model scores no higher are left out of the average.

    Returns:
        table of target, method, fraction, seed, task, metric, score, higher_is_better,
        relative_performance; the rows of task "average" hold the mean of both over tasks, of the score only if all
        tasks have the same metric.

    Source: Lee, Li, Hwang (EMNLP 2024), section 4.1 (relative performance).
    """
    full = scores[scores["method"] == "full"].groupby(["target", "task"])["score"].mean().rename("full")
    table = scores.join(full, on=["target", "task"])
    ratio = (table["score"] / table["full"]).where(table["higher_is_better"], table["full"] / table["score"])
    divides_by_zero = ~table["higher_is_better"] & (table["score"] == 0)
    table["relative_performance"] = ratio.mask(divides_by_zero | (table["full"] == 0))
    columns = [*KEYS, "task", "metric", "score", "higher_is_better", "relative_performance"]
    average = average_over_tasks(table, KEYS, unlearned_tasks(scores, learned_above))
    return pd.concat([table[columns], average[columns]], ignore_index=True).sort_values(
        [*KEYS, "task"], ignore_index=True
    )


def headline_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Scores averaged over targets and seeds.

    Args:
        summary: table of `relative_performance`.

    Returns:
        one row per (method, fraction), the full data first and random last; columns relative_performance and the
        score of each task, "average" included if the tasks have the same metric.
    """
    table = summary.pivot_table(index=["method", "fraction"], columns="task", values="score", aggfunc="mean")
    relative = summary[summary["task"] == AVERAGE].groupby(["method", "fraction"])["relative_performance"].mean()
    table.insert(0, "relative_performance", relative.reindex(table.index))
    order = sorted(table.index, key=lambda row: (row[0] != "full", row[0] == "random", row[0], -row[1]))
    return table.loc[order]


def underrepresented_sources(manifest: pd.DataFrame, coreset: pd.DataFrame) -> pd.Series:
    """Sources of which a coreset keeps less than a quarter of an even share, if that share is at least one sample.

    Args:
        manifest: table of sample_id, source.
        coreset: table of sample_id.

    Returns:
        source -> fraction of its samples kept, in ascending order.
    """
    kept = manifest["sample_id"].isin(coreset["sample_id"])
    sources = kept.groupby(manifest["source"])
    fractions, even_shares = sources.mean().sort_values(), sources.size() * kept.mean()
    is_low = fractions < UNDERREPRESENTED_BELOW * kept.mean()
    return fractions[is_low & (even_shares.reindex(fractions.index) >= FEWEST_EXPECTED)]


def constraint_table(
    constraints: Constraints, samples: pd.DataFrame, coresets: Mapping[tuple[str, str], pd.DataFrame]
) -> pd.DataFrame:
    """What the constraints asked for and what each coreset has, in numbers of samples.

    Args:
        constraints: section of the config.
        samples: table of sample_id, source, n_images of the usable samples.
        coresets: (method, fraction) -> coreset table; the full data has no constraints but `exclude` and is left out.

    Returns:
        one row per fraction and constraint: data kept, constraint, asked, and a column per method.
    """
    columns = ["data kept", "constraint", "asked"]
    tables: dict[str, pd.DataFrame] = {}
    for (method, fraction), coreset in coresets.items():
        if method != "full":
            result = outcome(constraints, samples, coreset).rename(columns={"got": method})
            result.insert(0, "data kept", f"{float(fraction):.1%}")
            table = tables.get(fraction)
            tables[fraction] = result if table is None else table.assign(**{method: result[method]})
    return pd.concat(tables.values(), ignore_index=True) if tables else pd.DataFrame(columns=columns)


def as_text(
    summary: pd.DataFrame,
    rejected: pd.DataFrame,
    manifest: pd.DataFrame,
    coresets: Mapping[tuple[str, str], pd.DataFrame],
    *,
    clusters: str,
    report: str,
    failures: Sequence[str] = (),
    warnings: Sequence[str] = (),
    screening: Sequence[str] = (),
    held_out: int = 0,
    constraints: pd.DataFrame | None = None,
) -> str:
    """The summary as Markdown: headline table, rejected samples, constraints, sources hardly kept, clusters, report.

    Args:
        summary: table of `relative_performance`.
        rejected: table of the rejected samples.
        manifest: table of sample_id, source of the usable samples.
        coresets: (method, fraction) -> coreset table.
        clusters: lines about the clusters and an earlier run (`coincide.selection.budget.spread_text`,
            `coincide.reporting.growth.growth_lines`).
        report: path of the report.
        failures: result of `failure_lines`.
        warnings: lines about the config and an earlier run, without a full stop.
        screening: lines about evaluation leaks and near-duplicates (`coincide.reporting.leaks`).
        held_out: number of samples that are held out for evaluation.
        constraints: table of `constraint_table`; None: there are none.
    """
    lines = ["", _headline_text(summary)]
    kept_out = f" {held_out:,} held out for evaluation." if held_out else ""
    lines += ["", f"{len(manifest):,} usable samples, {len(rejected):,} rejected.{kept_out}"]
    lines += [f"- {count:,} × {reason}" for reason, count in rejected["reason"].value_counts().items()]
    if constraints is not None:
        lines += ["", "Constraints, in samples:", "", markdown_table(constraints)]
    lines += ["", *screening] if screening else []
    for (method, fraction), coreset in coresets.items():
        if len(sources := underrepresented_sources(manifest, coreset)):
            listed = ", ".join(f"{source} ({kept:.1%})" for source, kept in sources.items())
            lines += [
                "",
                f"Warning: {method} at {float(fraction):.1%} keeps few samples of these sources: {listed}. If a model "
                "lacks the skills that they teach, set selection.constraints.at_least for these sources "
                "(docs/your-own-data.md).",
            ]
    lines += ["", *failures] if failures else []
    lines += ["", *(f"Warning: {line}." for line in warnings)] if warnings else []
    lines += ["", clusters, "", f"Report: {report}", ""]
    return "\n".join(lines)


def _headline_text(summary):
    rows = []
    for (method, fraction), row in headline_table(summary).iterrows():
        relative = row["relative_performance"]
        rows.append(
            {
                "method": method,
                "data kept": f"{fraction:.1%}",
                "relative performance": "–" if pd.isna(relative) else f"{relative:.1%}",
                **({"average score": f"{row[AVERAGE]:.3f}"} if AVERAGE in row else {}),
            }
        )
    return markdown_table(pd.DataFrame(rows))


def short_names(tasks: Sequence[str]) -> list[str]:
    """Names of tasks for a table or a figure: without the words that all of them start with, without underscores.

    >>> short_names(["mini_mix_digits_add", "mini_mix_digits_read"])
    ['add', 'read']
    """
    names = [task.split("_") for task in tasks]
    common = sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, zip(*names))) if len(tasks) > 1 else 0
    return [" ".join(words[common:] or words) for words in names]
