"""The figures of the report and of the studies, as SVG files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from coincide.base.files import replacing
from coincide.base.rows import unit_rows
from coincide.reporting.summary import AVERAGE, short_names
from coincide.selection.budget import scores_of

COLOURS = {"coincide": "#1f5fbf", "random": "#c2571a", "full": "#444444"}
OTHER_METHOD = "#777777"
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g}%")
MAX_SOURCES = 20  # distinct colours of the palette; the smallest sources are combined into one bar
plt.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "axes.axisbelow": True,
        "svg.hashsalt": "coincide",
        "svg.fonttype": "path",
        "figure.constrained_layout.use": True,
    }
)


def draw_performance(summary: pd.DataFrame, path: str | Path) -> None:
    """Relative performance against fraction, one line per method, and the score of each task at the largest fraction.

    Without a full-data model, scores are drawn instead of relative performance.

    Args:
        summary: table of `coincide.reporting.summary.relative_performance`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), gridspec_kw={"width_ratios": [1, 1.5]})
    average = summary[(summary["task"] == AVERAGE) & (summary["method"] != "full")]
    _draw_lines(left, average)
    _draw_task_scores(right, summary, average["fraction"].max())
    _save(figure, path)


def _draw_lines(axis, average):
    """Average over tasks against fraction: a line through the means, a small dot per model."""
    measure = "relative_performance"
    if average[measure].isna().all():
        measure = "score"
    else:
        axis.axhline(1, color=COLOURS["full"], linestyle="--", linewidth=1, label="full data")
        axis.yaxis.set_major_formatter(PERCENT)
    for method, rows in average.groupby("method"):
        mean = rows.groupby("fraction")[measure].mean()
        axis.plot(mean.index, mean, marker="o", color=COLOURS.get(method), label=method)
        axis.scatter(rows["fraction"], rows[measure], s=10, alpha=0.5, color=COLOURS.get(method))
    axis.set(
        xlabel="fraction of the data kept",
        ylabel=f"{measure.replace('_', ' ')}, average over tasks",
        xlim=(0, None),
        ylim=(0, None),
    )
    axis.xaxis.set_major_formatter(PERCENT)
    axis.legend(frameon=False, loc="lower right")


def _draw_task_scores(axis, summary, fraction):
    """Scores of every task at one fraction and on the full data: a group of bars per task, a bar per method."""
    tasks = summary[(summary["task"] != AVERAGE) & ((summary["fraction"] == fraction) | (summary["method"] == "full"))]
    scores = tasks.pivot_table(index="task", columns="method", values="score", aggfunc="mean")
    methods = [method for method in ("full", "coincide", "random") if method in scores]
    methods += [method for method in scores if method not in COLOURS]
    height = 0.8 / len(methods)
    task_rows = np.arange(len(scores))
    for i, method in enumerate(methods):
        offset = (i - (len(methods) - 1) / 2) * height
        axis.barh(task_rows + offset, scores[method], height, color=COLOURS.get(method), label=method)
    axis.set_yticks(task_rows, short_names(list(scores.index)))
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(xlabel=f"score at {fraction:.0%} of the data (full: all of it)")
    axis.legend(frameon=False)


def draw_curves(intervals: pd.DataFrame, path: str | Path) -> None:
    """Relative performance with its interval against fraction, one line per method.

    With a single fraction there is one row per method instead.

    Args:
        intervals: table of `coincide.study.comparison.intervals`.
    """
    average = intervals[(intervals["task"] == AVERAGE) & (intervals["method"] != "full")]
    if average["fraction"].nunique() == 1:
        return _draw_single_fraction(average, path)
    figure, axis = plt.subplots(figsize=(8, 4.5))
    axis.axhline(1, color=COLOURS["full"], linestyle="--", linewidth=1, label="full data")
    methods = _sort_methods(average["method"])
    span = np.ptp(average["fraction"])
    for i, method in enumerate(methods):
        rows = average[average["method"] == method].sort_values("fraction")
        shift = span * 0.006 * (i - len(methods) / 2)  # so that intervals do not overlap
        below = (rows["mean"] - rows["low"].fillna(rows["mean"])).clip(lower=0)
        above = (rows["high"].fillna(rows["mean"]) - rows["mean"]).clip(lower=0)
        axis.errorbar(
            rows["fraction"] + shift, rows["mean"], yerr=[below, above], marker="o", markersize=4, capsize=2,
            color=_colour(method, methods), label=method, linewidth=2 if method == "coincide" else 1.2,
        )  # fmt: skip
    _finish_methods(figure, axis, "fraction of the data kept", path)


def _draw_single_fraction(average, path):
    """Relative performance at one fraction with its interval, the best method on top."""
    average = average.sort_values("mean")
    figure, axis = plt.subplots(figsize=(8, 0.32 * len(average) + 1.2))
    for row in average.itertuples():
        colour = COLOURS.get(row.method, OTHER_METHOD)
        axis.plot([row.low, row.high], [row.method] * 2, color=colour, linewidth=1.5)
        axis.scatter(row.mean, row.method, color=colour, zorder=3)
    axis.grid(axis="y", visible=False)
    axis.set(xlabel=f"relative performance at {average['fraction'].iloc[0]:.3g} of the data, average over tasks")
    axis.xaxis.set_major_formatter(PERCENT)
    _save(figure, path)


def draw_pareto(intervals: pd.DataFrame, costs: pd.DataFrame, path: str | Path) -> None:
    """Relative performance against the total job time as a share of that of finetuning on the full data.

    Args:
        intervals: table of `coincide.study.comparison.intervals`.
        costs: table of `coincide.study.comparison.costs`.
    """
    table = intervals[intervals["task"] == AVERAGE].merge(costs, on=["method", "fraction"])
    figure, axis = plt.subplots(figsize=(8, 4.5))
    methods = _sort_methods(table["method"])
    for method in methods:
        rows = table[table["method"] == method].sort_values("of_full")
        axis.plot(rows["of_full"], rows["mean"], marker="o", color=_colour(method, methods), label=method)
        for row in rows.itertuples():
            axis.annotate(f"{row.fraction:.0%}", (row.of_full, row.mean), xytext=(4, 4), textcoords="offset points",
                          fontsize=7, color="#666666")  # fmt: skip
    axis.axvline(1, color=COLOURS["full"], linestyle="--", linewidth=1)
    axis.set_xlim(0, None)
    _finish_methods(figure, axis, "time of scoring, selection and finetuning ÷ time of full finetuning", path)


def draw_tasks(table: pd.DataFrame, path: str | Path) -> None:
    """Relative performance of every method on every task, as a heat map with numbers in percent.

    Args:
        table: of `coincide.study.comparison.task_table`.
    """
    figure, axis = plt.subplots(figsize=(3 + 0.6 * table.shape[1], 1.6 + 0.3 * len(table)))
    image = axis.imshow(table.to_numpy(), cmap="RdYlBu", vmin=0, vmax=2, aspect="auto")
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        if np.isfinite(value):
            colour = "white" if abs(value - 1) > 0.75 else "black"
            axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(table.shape[1]), table.columns, rotation=40, ha="right")
    axis.set_yticks(range(len(table)), table.index)
    axis.grid(visible=False)
    bar = figure.colorbar(image, label="relative performance")
    bar.ax.yaxis.set_major_formatter(PERCENT)
    _save(figure, path)


def _finish_methods(figure, axis, xlabel, path):
    """Label, legend and file of a figure with one line per method."""
    axis.set(xlabel=xlabel, ylabel="relative performance, average over tasks")
    axis.xaxis.set_major_formatter(PERCENT)
    axis.yaxis.set_major_formatter(PERCENT)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def draw_transfer(pairs: pd.DataFrame, correlation: Mapping[str, float], path: str | Path) -> None:
    """Gain of each pair of clusters against the cosine similarity of their centroids, with a fitted line.

    Args:
        pairs: table of `coincide.study.transfer_check.relative_gains`.
        correlation: result of `coincide.study.transfer_check.correlation`.
    """
    cosine, gain = pairs["cosine"], pairs["gain"]
    figure, axis = plt.subplots(figsize=(6, 4.5))
    axis.scatter(cosine, gain, s=14, alpha=0.6, color=COLOURS["coincide"], linewidth=0)
    slope, intercept = np.polyfit(cosine, gain, 1)
    ends = np.array([cosine.min(), cosine.max()])
    axis.plot(ends, intercept + slope * ends, color=COLOURS["random"])
    axis.set(
        xlabel="cosine similarity of the centroids", ylabel="loss reduction, minus the mean of the evaluated cluster"
    )
    r, low, high = (correlation[key] for key in ("r", "low", "high"))
    axis.set_title(f"r = {r:.2f} ({low:.2f} to {high:.2f}), {correlation['pairs']} pairs")
    axis.yaxis.set_major_formatter(PERCENT)
    _save(figure, path)


def _sort_methods(methods):
    """Distinct methods: those with a fixed colour first, then the others by name."""
    return sorted(methods.unique(), key=lambda name: (name not in COLOURS, name))


def _colour(method, methods):
    others = [name for name in methods if name not in COLOURS]
    return COLOURS.get(method) or plt.get_cmap("tab10").colors[(2 + others.index(method)) % 10]


def draw_budgets(cluster_stats: pd.DataFrame, path: str | Path) -> None:
    """Budget of every cluster against its size, coloured by transferability ÷ density, one panel per fraction.

    Args:
        cluster_stats: table of cluster, size, transferability, density and a column budget_<fraction> per fraction.
    """
    columns = [column for column in cluster_stats if column.startswith("budget_")]
    figure, axes = plt.subplots(1, len(columns), figsize=(5 * len(columns) + 1, 4), squeeze=False, sharey=True)
    score = scores_of(cluster_stats)
    largest = cluster_stats["size"].max()
    for axis, column in zip(axes[0], columns):
        fraction = float(column.removeprefix("budget_"))
        points = axis.scatter(cluster_stats["size"], cluster_stats[column], c=score, cmap="viridis", s=16, linewidth=0)
        axis.plot([0, largest], [0, largest], color="#999999", linewidth=1, label="whole cluster")
        axis.plot(
            [0, largest], [0, fraction * largest], color="#999999", linestyle="--", linewidth=1, label="even share"
        )
        axis.set(xlabel="samples in the cluster", title=f"{fraction:.0%} kept")
        axis.legend(frameon=False, loc="upper left")
    axes[0][0].set_ylabel("samples kept (budget)")
    figure.colorbar(points, ax=axes, label="transferability ÷ density")
    _save(figure, path)


def draw_sources(manifest: pd.DataFrame, coresets: Iterable[tuple[str, str, pd.DataFrame]], path: str | Path) -> None:
    """Share of each source in the dataset and in every coreset, as stacked bars.

    Args:
        manifest: table with sample_id and source.
        coresets: (method, fraction, coreset table); those of method "full" are not drawn.
    """
    source = manifest.set_index("sample_id")["source"]
    shares = {"all data": source.value_counts(normalize=True)}
    for method, fraction, coreset in coresets:
        if method != "full":
            label = f"{method} {float(fraction):.0%}"
            shares[label] = source.loc[coreset["sample_id"]].value_counts(normalize=True)
    table = pd.DataFrame(shares).fillna(0).loc[source.value_counts().index]
    if len(table) > MAX_SOURCES:
        rest = table.iloc[MAX_SOURCES - 1 :]
        table = pd.concat([table.iloc[: MAX_SOURCES - 1], rest.sum().to_frame(f"{len(rest)} others").T])
    figure, axis = plt.subplots(figsize=(10, 0.5 * len(shares) + 2.2))
    left = np.zeros(len(shares))
    palette = plt.get_cmap("tab20")
    for i, (name, row) in enumerate(table.iterrows()):
        axis.barh(list(table), row, left=left, color=palette(i % 20), label=name, height=0.7)
        left += row.to_numpy()
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.xaxis.set_major_formatter(PERCENT)
    axis.set(xlim=(0, 1))
    axis.legend(frameon=False, ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=8)
    _save(figure, path)


def draw_similarity(
    centroids: NDArray[np.floating],
    path: str | Path,
    *,
    blocks: NDArray[np.bool_] | None = None,
    max_clusters: int = 400,
) -> None:
    """Cosine similarity of the clusters' centroids as a heat map, with similar clusters next to each other.

    Args:
        centroids: (K, d) array.
        blocks: (d,) mask of the columns that transferability compares, None for all.
        max_clusters: number of clusters drawn, evenly spaced by index if there are more.
    """
    drawn = np.linspace(0, len(centroids) - 1, min(len(centroids), max_clusters)).astype(int)
    unit = unit_rows((centroids if blocks is None else centroids[:, blocks])[drawn].astype(np.float64))
    cosine = unit @ unit.T
    # The first principal component orders the clusters so that similar ones are next to each other.
    order = np.argsort(np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)[0][:, 0])
    figure, axis = plt.subplots(figsize=(6, 5))
    image = axis.imshow(cosine[np.ix_(order, order)], cmap="magma", interpolation="nearest")
    axis.grid(visible=False)
    axis.set(xlabel="clusters, ordered by similarity", ylabel="clusters", xticks=[], yticks=[])
    figure.colorbar(image, label="cosine similarity of the centroids")
    _save(figure, path)


def _save(figure, path):
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)
