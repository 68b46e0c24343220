"""The figures of the report, as SVG files."""

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter

from coincide.base.files import replacing
from coincide.base.rows import unit_rows
from coincide.reporting.summary import AVERAGE, short_names
from coincide.selection.budget import scores_of

COLOURS = {"coincide": "#1f5fbf", "random": "#c2571a", "full": "#444444"}
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g}%")
SOURCES = 20  # told apart by colour; the smallest are drawn as one
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


def performance(summary, path):
    """Relative performance against fraction, one line a method, and each task's at the largest fraction."""
    average = summary[(summary["task"] == AVERAGE) & (summary["method"] != "full")]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), gridspec_kw={"width_ratios": [1, 1.5]})
    measure = "relative_performance"
    if average[measure].isna().all():  # no full-data model to measure against
        measure = "score"
    else:
        left.axhline(1, color=COLOURS["full"], linestyle="--", linewidth=1, label="full data")
    for method, rows in average.groupby("method"):
        mean = rows.groupby("fraction")[measure].mean()
        left.plot(mean.index, mean, marker="o", color=COLOURS.get(method), label=method)
        left.scatter(rows["fraction"], rows[measure], s=10, alpha=0.5, color=COLOURS.get(method))
    left.set(
        xlabel="share of the data kept",
        ylabel=f"{measure.replace('_', ' ')}, average of the tasks",
        xlim=(0, None),
        ylim=(0, None),
    )
    left.xaxis.set_major_formatter(PERCENT)
    if measure == "relative_performance":
        left.yaxis.set_major_formatter(PERCENT)
    left.legend(frameon=False, loc="lower right")

    largest = average["fraction"].max()
    tasks = summary[(summary["task"] != AVERAGE) & ((summary["fraction"] == largest) | (summary["method"] == "full"))]
    scores = tasks.pivot_table(index="task", columns="method", values="score", aggfunc="mean")
    scores = scores[
        [m for m in ("full", "coincide", "random") if m in scores] + [m for m in scores if m not in COLOURS]
    ]
    places = np.arange(len(scores))
    for i, method in enumerate(scores):
        offset = (i - (len(scores.columns) - 1) / 2) * 0.8 / len(scores.columns)
        right.barh(places + offset, scores[method], 0.8 / len(scores.columns), color=COLOURS.get(method), label=method)
    right.set_yticks(places, short_names(list(scores.index)))
    right.invert_yaxis()
    right.grid(axis="y", visible=False)
    right.set(xlabel=f"score; {largest:.0%} of the data, or all of it")
    right.legend(frameon=False)
    _save(figure, path)


def curves(found, path):
    """Relative performance over fractions with its interval, one line a method; of one fraction one below the other.

    Args:
        found: table of `coincide.study.comparison.intervals`.
    """
    average = found[(found["task"] == AVERAGE) & (found["method"] != "full")]
    if average["fraction"].nunique() == 1:
        return _side_by_side(average, path)
    figure, axis = plt.subplots(figsize=(8, 4.5))
    axis.axhline(1, color=COLOURS["full"], linestyle="--", linewidth=1, label="full data")
    methods = _named_first(average["method"])
    span = np.ptp(average["fraction"]) or 1
    for i, method in enumerate(methods):
        rows = average[average["method"] == method].sort_values("fraction")
        beside = rows["fraction"] + span * 0.006 * (i - len(methods) / 2)  # intervals side by side
        low, high = rows["mean"] - rows["low"].fillna(rows["mean"]), rows["high"].fillna(rows["mean"]) - rows["mean"]
        axis.errorbar(
            beside, rows["mean"], yerr=[low.clip(lower=0), high.clip(lower=0)], marker="o", markersize=4, capsize=2,
            color=_colour(method, methods), label=method, linewidth=2 if method == "coincide" else 1.2,
        )  # fmt: skip
    _finish_methods(figure, axis, "share of the data kept", path)


def _side_by_side(average, path):
    """Relative performance at one fraction with its interval, the best method on top."""
    average = average.sort_values("mean")
    figure, axis = plt.subplots(figsize=(8, 0.32 * len(average) + 1.2))
    for row in average.itertuples():
        colour = COLOURS.get(row.method, "#777777")
        axis.plot([row.low, row.high], [row.method] * 2, color=colour, linewidth=1.5)
        axis.scatter(row.mean, row.method, color=colour, zorder=3)
    axis.grid(axis="y", visible=False)
    axis.set(xlabel=f"relative performance at {average['fraction'].iloc[0]:.3g} of the data, average of the tasks")
    axis.xaxis.set_major_formatter(PERCENT)
    _save(figure, path)


def pareto(found, cost, path):
    """Relative performance against all seconds as a share of training on everything.

    Args:
        found: table of `coincide.study.comparison.intervals`.
        cost: table of `coincide.study.comparison.costs`.
    """
    average = found[found["task"] == AVERAGE]
    table = average.merge(cost, on=["method", "fraction"])
    figure, axis = plt.subplots(figsize=(8, 4.5))
    methods = _named_first(table["method"])
    for method in methods:
        rows = table[table["method"] == method].sort_values("of_full")
        axis.plot(rows["of_full"], rows["mean"], marker="o", color=_colour(method, methods), label=method)
        for row in rows.itertuples():
            axis.annotate(f"{row.fraction:.0%}", (row.of_full, row.mean), xytext=(4, 4), textcoords="offset points",
                          fontsize=7, color="#666666")  # fmt: skip
    axis.axvline(1, color=COLOURS["full"], linestyle="--", linewidth=1)
    axis.set_xlim(0, None)
    _finish_methods(figure, axis, "scoring, selecting and finetuning, against finetuning on everything", path)


def tasks(table, path):
    """Relative performance of every method on every task, as a heat map with its numbers.

    Args:
        table: of `coincide.study.comparison.by_task`.
    """
    figure, axis = plt.subplots(figsize=(3 + 0.6 * table.shape[1], 1.6 + 0.3 * len(table)))
    shown = axis.imshow(table.to_numpy(), cmap="RdYlBu", vmin=0, vmax=2, aspect="auto")
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        if np.isfinite(value):
            colour = "white" if abs(value - 1) > 0.75 else "black"
            axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(table.shape[1]), table.columns, rotation=40, ha="right")
    axis.set_yticks(range(len(table)), table.index)
    axis.grid(visible=False)
    bar = figure.colorbar(shown, label="relative performance")
    bar.ax.yaxis.set_major_formatter(PERCENT)
    _save(figure, path)


def _finish_methods(figure, axis, xlabel, path):
    axis.set(xlabel=xlabel, ylabel="relative performance, average of the tasks")
    axis.xaxis.set_major_formatter(PERCENT)
    axis.yaxis.set_major_formatter(PERCENT)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def transfer(others, found, path):
    """Gain of each pair of clusters against the cosine of their centroids.

    Args:
        others: table of `coincide.study.transfer_check.between`.
        found: of `coincide.study.transfer_check.correlation`.
    """
    gain = others["gain"]
    figure, axis = plt.subplots(figsize=(6, 4.5))
    axis.scatter(others["cosine"], gain, s=14, alpha=0.6, color=COLOURS["coincide"], linewidth=0)
    slope, start = np.polyfit(others["cosine"], gain, 1)
    ends = np.array([others["cosine"].min(), others["cosine"].max()])
    axis.plot(ends, start + slope * ends, color=COLOURS["random"])
    axis.set(xlabel="cosine of the centroids", ylabel="fall of the loss, less the mean of the cluster asked")
    axis.set_title(f"r = {found['r']:.2f} ({found['low']:.2f} to {found['high']:.2f}), {found['pairs']} pairs")
    axis.yaxis.set_major_formatter(PERCENT)
    _save(figure, path)


def _named_first(methods):
    return sorted(methods.unique(), key=lambda name: (name not in COLOURS, name))


def _colour(method, methods):
    others = [name for name in methods if name not in COLOURS]
    return COLOURS.get(method) or plt.get_cmap("tab10").colors[(2 + others.index(method)) % 10]


def budgets(cluster_stats, path):
    """Size of every cluster against its budget, coloured by its score, one panel a fraction."""
    columns = [column for column in cluster_stats if column.startswith("budget_")]
    figure, axes = plt.subplots(1, len(columns), figsize=(5 * len(columns) + 1, 4), squeeze=False, sharey=True)
    score = scores_of(cluster_stats)
    for axis, column in zip(axes[0], columns):
        fraction = float(column.removeprefix("budget_"))
        shown = axis.scatter(cluster_stats["size"], cluster_stats[column], c=score, cmap="viridis", s=16, linewidth=0)
        top = cluster_stats["size"].max()
        axis.plot([0, top], [0, top], color="#999999", linewidth=1, label="all of it")
        axis.plot([0, top], [0, fraction * top], color="#999999", linestyle="--", linewidth=1, label="an equal share")
        axis.set(xlabel="samples in the cluster", title=f"{fraction:.0%} kept")
        axis.legend(frameon=False, loc="upper left")
    axes[0][0].set_ylabel("samples kept (budget)")
    figure.colorbar(shown, ax=axes, label="transferability ÷ density")
    _save(figure, path)


def sources(manifest, coresets, path):
    """Share of each source in the dataset and in every coreset, as stacked bars.

    Args:
        manifest: table with sample_id and source.
        coresets: list of (method, fraction, coreset table).
    """
    source = manifest.set_index("sample_id")["source"]
    shares = {"all data": source.value_counts(normalize=True)}
    for method, fraction, coreset in coresets:
        if method != "full":
            label = f"{method} {float(fraction):.0%}"
            shares[label] = source.loc[coreset["sample_id"]].value_counts(normalize=True)
    table = pd.DataFrame(shares).fillna(0).loc[source.value_counts().index]
    if len(table) > SOURCES:
        rest = table.iloc[SOURCES - 1 :]
        table = pd.concat([table.iloc[: SOURCES - 1], rest.sum().to_frame(f"{len(rest)} others").T])
    figure, axis = plt.subplots(figsize=(10, 0.5 * len(shares) + 2.2))
    left = np.zeros(len(shares))
    palette = plt.get_cmap("tab20").colors
    for i, (name, row) in enumerate(table.iterrows()):
        axis.barh(list(table), row, left=left, color=palette[i % 20], label=name, height=0.7)
        left += row.to_numpy()
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.xaxis.set_major_formatter(PERCENT)
    axis.set(xlim=(0, 1))
    axis.legend(frameon=False, ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=8)
    _save(figure, path)


def similarity(centroids, path, *, blocks=None, at_most=400):
    """Cosine similarity of the clusters as a heat map, similar ones side by side.

    Args:
        centroids: (K, d) array.
        blocks: (d,) mask of the columns that transferability compares, None for all.
        at_most: clusters drawn; evenly spaced ones where there are more.
    """
    chosen = np.linspace(0, len(centroids) - 1, min(len(centroids), at_most)).astype(int)
    unit = unit_rows((centroids if blocks is None else centroids[:, blocks])[chosen].astype(np.float64))
    cosine = unit @ unit.T
    # The leading direction of what is left without the mean puts similar clusters together.
    order = np.argsort(np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)[0][:, 0])
    figure, axis = plt.subplots(figsize=(6, 5))
    shown = axis.imshow(cosine[np.ix_(order, order)], cmap="magma", interpolation="nearest")
    axis.grid(visible=False)
    axis.set(xlabel="cluster, similar ones together", ylabel="cluster", xticks=[], yticks=[])
    figure.colorbar(shown, label="cosine similarity of the centroids")
    _save(figure, path)


def _save(figure, path):
    with replacing(path) as part:
        figure.savefig(part, format="svg", metadata={"Date": None})
    plt.close(figure)
