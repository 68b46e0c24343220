"""The figures of the studies, as SVG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter

from coincide.base.files import replacing
from coincide.reporting.summary import AVERAGE

COLOURS = {"coincide": "#1f5fbf", "random": "#c2571a", "full": "#444444"}
OTHER_COLOURS = [f"C{i}" for i in range(2, 10)]  # the first two are those of coincide and random
OTHER_METHOD = "#777777"
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g}%")
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
            rows["fraction"] + shift, rows["mean"], yerr=[below, above], markersize=4, capsize=2, label=method,
            linewidth=2 if method == "coincide" else 1.2, **_style(method, methods),
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

    The size of a point shows the fraction.

    Args:
        intervals: table of `coincide.study.comparison.intervals`.
        costs: table of `coincide.reporting.costs.costs`.
    """
    table = intervals[intervals["task"] == AVERAGE].merge(costs, on=["method", "fraction"])
    figure, axis = plt.subplots(figsize=(8, 4.5))
    methods = _sort_methods(table["method"])
    fractions = sorted(set(table["fraction"]))
    for method in methods:
        rows = table[table["method"] == method].sort_values("of_full")
        style = _style(method, methods)
        axis.plot(rows["of_full"], rows["mean"], markersize=4, label=method, **style)
        sizes = [20 + 25 * fractions.index(fraction) for fraction in rows["fraction"]]
        axis.scatter(rows["of_full"], rows["mean"], s=sizes, marker=style["marker"], color=style["color"])
    axis.axvline(1, color=COLOURS["full"], linestyle="--", linewidth=1)
    axis.set_xlim(0, None)
    shares = ", ".join(PERCENT(fraction) for fraction in fractions)
    label = (
        f"time of scoring, selection and finetuning ÷ time of full finetuning\n(points by size: {shares} of the data)"
    )
    _finish_methods(figure, axis, label, path)


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


def _style(method, methods):
    """Colour of a method, and its marker and line, which tell methods apart when there are more than colours."""
    if method in COLOURS:
        return {"color": COLOURS[method], "marker": "o", "linestyle": "-"}
    others = [name for name in methods if name not in COLOURS]
    turn, i = divmod(others.index(method), len(OTHER_COLOURS))
    return {"color": OTHER_COLOURS[i], "marker": "os^"[turn % 3], "linestyle": ("-", "--", ":")[turn % 3]}


def _save(figure, path):
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)
