"""Scores of all models, relative performance, and the text that ends a run."""

from itertools import takewhile
from pathlib import Path

import pandas as pd

from coincide.evaluation.results import read_scores

AVERAGE = "average"  # the row over all tasks
KEYS = ["target", "method", "fraction", "seed"]
HARDLY = 0.25  # of an even share: a source of which a coreset keeps less is named


def read_results(paths):
    """Scores from evaluation results.

    Args:
        paths: results.json files at …/<target>/<method>/<fraction>/<seed>/<group>/.

    Returns:
        table of target, method, fraction, seed, task, metric, score.
    """
    rows = []
    for path in paths:
        target, method, fraction, seed, _group, _ = Path(path).parts[-6:]
        for score in read_scores(path):
            rows.append({"target": target, "method": method, "fraction": float(fraction), "seed": int(seed), **score})
    return pd.DataFrame(rows).drop_duplicates([*KEYS, "task"])


def unlearned(scores, above):
    """Tasks that the full-data model did not learn.

    Args:
        scores: table with target, method, task, score, higher_is_better.
        above: score that it must exceed, where higher is better.

    Returns:
        (target, task) -> mean score of the full-data models.
    """
    full = scores[(scores["method"] == "full") & scores["higher_is_better"] & (scores["task"] != AVERAGE)]
    score = full.groupby(["target", "task"])["score"].mean()
    return score[score <= above]


def averages(table, keys, left_out):
    """The rows of task "average": mean score over all tasks, mean relative performance over those not left out."""
    counts = ~pd.MultiIndex.from_frame(table[["target", "task"]]).isin(left_out.index)
    counted = table.assign(relative_performance=table["relative_performance"].where(counts))
    average = counted.groupby(keys, as_index=False)[["score", "relative_performance"]].mean()
    return average.assign(task=AVERAGE, metric="mean", higher_is_better=True)


def relative_performance(scores, *, learned_above=0.0):
    """Add relative performance and the average over tasks.

    A score's relative performance is score ÷ score of the full-data model of the same target and
    task, averaged over seeds; the other way round for metrics where lower is better. It is missing
    where the full-data model scores zero or was not trained, and the average is over the tasks that
    have one.

    Args:
        scores: table of `read_results`.
        learned_above: tasks on which the full-data model scores no higher are not averaged over.

    Returns:
        table of target, method, fraction, seed, task, metric, score, higher_is_better,
        relative_performance; the rows of task "average" hold the mean of both over tasks.

    Source: Lee, Li, Hwang (EMNLP 2024), section 4.1 (relative performance).
    """
    full = scores[scores["method"] == "full"].groupby(["target", "task"])["score"].mean().rename("full")
    table = scores.join(full, on=["target", "task"])
    ratio = (table["score"] / table["full"]).where(table["higher_is_better"], table["full"] / table["score"])
    table["relative_performance"] = ratio.where(
        (table["full"] != 0) & (table["score"] != 0) | table["higher_is_better"]
    )
    table.loc[table["full"] == 0, "relative_performance"] = float("nan")
    columns = [*KEYS, "task", "metric", "score", "higher_is_better", "relative_performance"]
    average = averages(table, KEYS, unlearned(scores, learned_above))
    return pd.concat([table[columns], average[columns]], ignore_index=True).sort_values(
        [*KEYS, "task"], ignore_index=True
    )


def headline(summary):
    """One row a method and fraction, averaged over targets and seeds: tasks as columns, the full data first."""
    table = summary.pivot_table(index=["method", "fraction"], columns="task", values="score", aggfunc="mean")
    relative = summary[summary["task"] == AVERAGE].groupby(["method", "fraction"])["relative_performance"].mean()
    table.insert(0, "relative_performance", relative.reindex(table.index))
    order = sorted(table.index, key=lambda row: (row[0] != "full", row[0] == "random", row[0], -row[1]))
    return table.loc[order]


def hardly_kept(manifest, coreset):
    """Sources of which a coreset keeps less than a quarter of an even share.

    Args:
        manifest: table of sample_id, source.
        coreset: table of sample_id.

    Returns:
        source -> share of its samples kept, the least first.
    """
    kept = manifest["sample_id"].isin(coreset["sample_id"])
    shares = kept.groupby(manifest["source"]).mean().sort_values()
    return shares[shares < HARDLY * kept.mean()]


def as_text(summary, rejected, manifest, coresets, *, report):
    """The summary as Markdown: headline table, samples set aside, sources hardly kept, where the report lies.

    Args:
        summary: of `relative_performance`.
        rejected: table of samples set aside.
        manifest: table of sample_id, source of the samples offered.
        coresets: (method, fraction) -> coreset table.
        report: path of the report.
    """
    table = headline(summary)
    lines = ["", "| method | data kept | relative performance | average score |", "| --- | --- | --- | --- |"]
    for (method, fraction), row in table.iterrows():
        relative = row["relative_performance"]
        relative = "–" if pd.isna(relative) else f"{relative:.1%}"
        lines.append(f"| {method} | {fraction:.1%} | {relative} | {row[AVERAGE]:.3f} |")
    lines += ["", f"{len(manifest):,} samples were offered for selection, {len(rejected):,} were set aside."]
    lines += [f"- {count:,} × {reason}" for reason, count in rejected["reason"].value_counts().items()]
    for (method, fraction), coreset in coresets.items():
        if len(hardly := hardly_kept(manifest, coreset)):
            named = ", ".join(f"{source} ({share:.1%})" for source, share in hardly.items())
            lines += [
                "",
                f"{method} at {float(fraction):.1%} keeps hardly any of: {named}. Should a model lose what these "
                "teach, see docs/your-own-data.md, skills that go missing.",
            ]
    lines += ["", f"Report: {report}", ""]
    return "\n".join(lines)


def short_names(tasks):
    """Names of tasks for a table or a picture: without what all begin with, and without underscores."""
    words = [task.split("_") for task in tasks]
    common = sum(1 for _ in takewhile(lambda same: len(set(same)) == 1, zip(*words))) if len(tasks) > 1 else 0
    return [" ".join(own[common:] or own) for own in words]
