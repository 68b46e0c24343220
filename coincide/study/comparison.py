"""Methods compared over several runs: intervals, paired tests, ranks, areas, and what each costs.

A replicate is a run and a seed of finetuning. Runs that differ in the seeds of clustering and selection carry
the chance in the choice of samples into the intervals, beside that of training. Runs of a variant, where
settings differ too, are compared as methods of their own.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from coincide.reporting.summary import AVERAGE, averages, short_names, unlearned

REPLICATE = ["replicate", "target", "seed"]
OURS, WHOLE = "coincide", "full"
RESAMPLES = 9999


def collect(summaries, variants=None, *, learned_above=0.0):
    """One table of several summaries.

    Averages are taken anew, so that all replicates count the same tasks.

    Args:
        summaries: run -> table of `coincide.reporting.summary.relative_performance`.
        variants: run -> (variant, replicate); without it each run is a replicate of the same.
        learned_above: tasks on which the full-data models score no higher on average are not averaged over.

    Returns:
        the tables with columns run, replicate and base: the method, whose name has its variant behind it
        in `method`.
    """
    tables = []
    for i, (run, table) in enumerate(summaries.items()):
        variant, replicate = variants[run] if variants else ("", i)
        named = table["method"] + f" ({variant})" if variant else table["method"]
        named = named.where(table["method"] != WHOLE, WHOLE)
        tables.append(table.assign(run=run, replicate=replicate, base=table["method"], method=named))
    table = pd.concat(tables, ignore_index=True)
    table = table[table["task"] != AVERAGE]
    keys = ["run", *REPLICATE, "base", "method", "fraction"]
    return pd.concat([table, averages(table, keys, unlearned(table, learned_above))], ignore_index=True)


def interval(values, *, seed=0):
    """(mean, low, high): 95% bootstrap interval of the mean; low and high are NaN below three values."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 3:
        return (values.mean() if len(values) else np.nan), np.nan, np.nan
    if np.ptp(values) == 0:
        return (values[0],) * 3
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return values.mean(), found.low, found.high


def intervals(table):
    """A row a method, fraction and task: mean relative performance, its interval, number of replicates.

    Args:
        table: of `collect`.
    """
    rows = []
    for (method, fraction, task), part in table.groupby(["method", "fraction", "task"]):
        mean, low, high = interval(part["relative_performance"])
        rows.append(
            {"method": method, "fraction": fraction, "task": task, "mean": mean, "low": low, "high": high,
             "replicates": part["relative_performance"].notna().sum(), "score": part["score"].mean()}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _averages(table):
    """Relative performance averaged over tasks: a row a replicate, columns (fraction, method)."""
    table = table[(table["task"] == AVERAGE) & (table["method"] != WHOLE)]
    return table.pivot_table(index=REPLICATE, columns=["fraction", "method"], values="relative_performance")


def paired(table):
    """Coincide against each other method: replicates and fractions side by side.

    Returns:
        a row a method and fraction, and one over several fractions (NaN), of which each replicate is one pair,
        its mean over fractions: mean difference in relative performance (above 0: coincide is better), its
        interval, number of pairs, p of the two-sided sign-flip permutation test, and the least p that so
        few pairs can give.
    """
    wide, rows = _averages(table), []
    fractions, methods = (sorted(set(wide.columns.get_level_values(i))) for i in (0, 1))
    for method in [m for m in methods if m != OURS and OURS in methods]:
        of_fraction = {
            f: wide[f, OURS] - wide[f, method] for f in fractions if {(f, OURS), (f, method)} <= set(wide.columns)
        }
        if len(of_fraction) > 1:
            of_fraction[np.nan] = pd.concat(of_fraction.values(), axis=1).mean(axis=1)
        for fraction, difference in of_fraction.items():
            difference = difference.dropna().to_numpy()
            mean, low, high = interval(difference)
            rows.append(
                {"method": method, "fraction": fraction, "difference": mean, "low": low, "high": high,
                 "pairs": len(difference), "p": sign_flips(difference), "least_p": 2.0 ** (1 - len(difference))}
            )  # fmt: skip
    return pd.DataFrame(rows)


def sign_flips(difference):
    """p of the two-sided permutation test of paired differences: how often flipped signs give as large a mean."""
    if not len(difference):
        return np.nan
    if len(difference) <= 14:
        flips = np.array(list(product((1, -1), repeat=len(difference))))
    else:
        flips = np.random.default_rng(0).choice((1, -1), size=(RESAMPLES, len(difference)))
        flips = np.vstack([np.ones(len(difference)), flips])
    means = np.abs(flips @ difference)
    return float((means >= abs(difference.sum()) - 1e-12).mean())


def ranks(table):
    """A row a method: mean rank among the methods over replicates and fractions (1 is best), and the area.

    The area is that under relative performance over fractions, divided by their span: a mean over
    fractions; of one fraction the value itself. With interval over replicates.
    """
    wide = _averages(table)
    rank = wide.stack("fraction", future_stack=True).rank(axis=1, ascending=False)
    fractions = np.array(sorted(set(wide.columns.get_level_values(0))))
    rows = []
    for method in rank.columns:
        curve = wide.xs(method, axis=1, level="method").reindex(columns=fractions).dropna()
        values = curve.to_numpy()
        area = values[:, 0] if len(fractions) == 1 else np.trapezoid(values, fractions, axis=1) / np.ptp(fractions)
        mean, low, high = interval(area)
        rows.append({"method": method, "rank": rank[method].mean(), "area": mean, "low": low, "high": high})
    return pd.DataFrame(rows).sort_values("area", ascending=False, ignore_index=True)


SCORING = {  # benchmarks of what a method reads
    OURS: ("activations/*.tsv", "merge.tsv", "clusters.tsv", "transferability.tsv", "density/*.tsv"),
    "self_sup": ("activations/*.tsv", "merge.tsv", "clusters.tsv"),
    "clip_score": ("clip_scores/*.tsv",),
    "self_filter": ("clip_scores/*.tsv", "difficulty.tsv"),
    "random": (),
}
REFERENCE = ("activations/*.tsv", "merge.tsv")


def costs(table, benchmarks):
    """A row a method and fraction: seconds of scoring, selecting, finetuning, and all against full training.

    Seconds are of jobs, not of cores: on GPUs with one a job they are device seconds. What several methods
    read is counted for each of them. Where scores are read with the activations, that pass is the longer one.

    Args:
        table: of `collect`.
        benchmarks: run -> list of folders of benchmarks: its own, and those of runs that made what it shares.
    """
    rows = []
    for keys, _ in table[table["task"] == AVERAGE].groupby(["run", "target", "seed", "method", "base", "fraction"]):
        run, target, seed, label, method, fraction = keys
        own, fraction = benchmarks[run], f"{fraction:g}"
        scoring = selecting = 0.0
        if method != WHOLE:
            scoring = sum(_seconds(own, part) for part in SCORING.get(method, REFERENCE))
            selecting = _seconds(own, f"method_coreset/{method}-{fraction}.tsv")
            if method == OURS:
                jobs = (f"budget/{fraction}.tsv", f"picks/{fraction}-*.tsv", f"coincide_coreset/{fraction}.tsv")
                selecting = sum(_seconds(own, job) for job in ("shares.tsv", *jobs))
        finetuning = _seconds(own, f"finetune_model/{target}-{method}-{fraction}-{seed}.tsv")
        rows.append([run, label, float(fraction), scoring, selecting, finetuning])
    found = pd.DataFrame(rows, columns=["run", "method", "fraction", "scoring", "selecting", "finetuning"])
    found["all"] = found[["scoring", "selecting", "finetuning"]].sum(axis=1)
    found = found.groupby(["method", "fraction"], as_index=False).mean(numeric_only=True)
    whole = found.loc[found["method"] == WHOLE, "all"].mean()
    return found.assign(of_full=found["all"] / whole)


def _seconds(folders, pattern):
    """Seconds of the jobs whose benchmarks these are, in the first folder that has any."""
    for folder in folders:
        if paths := sorted(Path(folder).glob(pattern)):
            return sum(pd.read_csv(path, sep="\t")["s"].sum() for path in paths)
    return 0.0


def as_text(found, tests, ranked, cost, tasks, left_out):
    """The comparison as Markdown.

    Args:
        found: of `intervals`.
        tests: of `paired`.
        ranked: of `ranks`.
        cost: of `costs`.
        tasks: of `by_task`.
        left_out: of `coincide.reporting.summary.unlearned`.
    """
    average = found[found["task"] == AVERAGE]
    replicates = int(average.loc[average["method"] != WHOLE, "replicates"].max())
    lines = [
        f"Relative performance, mean of {replicates} replicates and 95% bootstrap interval of the mean; a replicate "
        "has its own clusters, draws and training.", "",
    ]  # fmt: skip
    fractions = sorted(average.loc[average["method"] != WHOLE, "fraction"].unique())
    lines += ["| method | " + " | ".join(f"{f:g}" for f in fractions) + " | area | mean rank |"]
    lines += ["| --- " * (len(fractions) + 3) + "|"]
    for row in ranked.itertuples():
        cells = []
        for fraction in fractions:
            cell = average[(average["method"] == row.method) & (average["fraction"] == fraction)]
            cells.append(" ".join(_with_interval(*cell[["mean", "low", "high"]].iloc[0])) if len(cell) else "–")
        area = " ".join(_with_interval(row.area, row.low, row.high))
        lines.append(f"| {row.method} | {' | '.join(cells)} | {area} | {row.rank:.1f} |")
    if len(left_out):
        scores = ", ".join(f"{task} ({score:.2f})" for (_, task), score in left_out.items())
        lines += ["", f"Not averaged over, for the full-data model did not learn them (its score): {scores}."]
    lines += ["", "coincide less each other method, in points of relative performance, pair by pair:", ""]
    lines += ["| method | fraction | difference | p | least p possible | pairs |", "| --- " * 6 + "|"]
    for row in tests.itertuples():
        fraction = "all" if np.isnan(row.fraction) else f"{row.fraction:g}"
        difference = " ".join(_with_interval(row.difference, row.low, row.high, signed=True))
        lines.append(f"| {row.method} | {fraction} | {difference} | {row.p:.3f} | {row.least_p:.3f} | {row.pairs} |")
    lines += _tasks_as_text(tasks)
    lines += ["", "Seconds of jobs, and all of them against training on everything:", ""]
    lines += ["| method | fraction | scoring | selecting | finetuning | of full |", "| --- " * 6 + "|"]
    for row in cost.itertuples():
        seconds = " | ".join(f"{value:.0f}" for value in (row.scoring, row.selecting, row.finetuning))
        lines.append(f"| {row.method} | {row.fraction:g} | {seconds} | {row.of_full:.0%} |")
    return "\n".join([*lines, ""])


def by_task(found, left_out):
    """Mean relative performance on every task.

    Args:
        found: of `intervals`.
        left_out: of `coincide.reporting.summary.unlearned`; a star marks these tasks.

    Returns:
        table of methods with their fraction, the best average first, and short names of tasks, "average" the
        first; whichever are more are the rows. NaN where there is none.
    """
    wide = found[found["method"] != WHOLE].pivot_table(
        index=["method", "fraction"], columns="task", values="mean", dropna=False
    )
    wide = wide.dropna(how="all").sort_values(AVERAGE, ascending=False)
    tasks = [task for task in wide.columns if task != AVERAGE]
    unlearned_tasks = left_out.index.get_level_values("task")
    names = [name + " *" * (task in unlearned_tasks) for task, name in zip(tasks, short_names(tasks))]
    wide = wide[[AVERAGE, *tasks]].set_axis([AVERAGE, *names], axis=1)
    wide.index = [f"{method} {fraction:.3g}" for method, fraction in wide.index]
    return wide if len(wide) > len(tasks) else wide.T


def _tasks_as_text(table):
    yield from ("", "Relative performance on each task, mean of the replicates (*: not averaged over):", "")
    yield "| | " + " | ".join(table.columns) + " |"
    yield "| --- " * (1 + len(table.columns)) + "|"
    for name, row in table.iterrows():
        cells = " | ".join("–" if np.isnan(value) else f"{100 * value:.0f}" for value in row)
        yield f"| {name} | {cells} |"


def _with_interval(mean, low, high, *, signed=False):
    form = "{:+.1f}" if signed else "{:.1f}"
    yield form.format(100 * mean)
    if np.isfinite(low):
        yield f"({form.format(100 * low)} to {form.format(100 * high)})"
