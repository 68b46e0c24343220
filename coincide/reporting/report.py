"""The HTML report of a run: one file that opens without a network.

Every section is a function of this module and a template of the same name in templates/sections/; `SECTIONS` has their
order. Charts are drawn in the browser (templates/report.js), from the tables of the page or, where the page has no such
table, from one block of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from coincide.base.activation_store import Activations
from coincide.base.files import replacing
from coincide.dataset.images import ImageFolders
from coincide.reporting.answer import ENOUGH, FULL, answer, compare_methods
from coincide.reporting.costs import costs, stage_times
from coincide.reporting.projection import neighbour_map, principal_components, similarity_order
from coincide.reporting.run_warnings import RunWarning
from coincide.reporting.shown_samples import (
    THUMBNAIL_BYTES,
    choose_samples,
    describe_samples,
    evenly_spaced,
)
from coincide.reporting.summary import AVERAGE, short_names, unlearned_tasks
from coincide.reporting.visual_necessity import VisualNecessity

CLUSTERS_SHOWN = 1500
CENTROIDS_SHOWN = 120
SOURCES_SHOWN = 60
REJECTED_SHOWN = 20

Context = dict[str, Any]


@dataclass
class RunResults:
    """What a report is made of.

    Attributes:
        settings: the config of the run.
        summary, manifest, rejected, clusters, cluster_stats: tables of the run.
        held_out: number of samples that are held out for evaluation.
        centroids: (K, d) array.
        activations: of the manifest's samples, in its order.
        coresets: (method, fraction) -> coreset table, in the order of the config.
        dataset: as `coincide.dataset.formats.open_dataset` returns it.
        images: folders that image names are relative to.
        warnings: of `coincide.reporting.run_warnings.run_warnings`.
        benchmarks: folders of Snakemake's benchmark files that belong to the run.
        all_benchmarks: the same, and those of the runs that it shares results with.
        shared: folder of another run -> stages that it computed for this run as well.
        provenance: heading -> (name, value) pairs: versions, models, digests.
        commands: shell commands that repeat the run from a file with its settings.
        links: title -> path relative to the report, of other pages.
        constraints: table of `coincide.reporting.summary.constraint_table`; None: there are none.
        necessity: of `coincide.reporting.visual_necessity`; None: the samples were not read without their images.
        screening: of `coincide.reporting.leaks.report_section`.
        growth: of `coincide.reporting.growth.growth_section`.
    """

    settings: Mapping[str, Any]
    summary: pd.DataFrame
    manifest: pd.DataFrame
    rejected: pd.DataFrame
    clusters: pd.DataFrame
    cluster_stats: pd.DataFrame
    centroids: NDArray[np.floating]
    activations: Activations
    coresets: Mapping[tuple[str, str], pd.DataFrame]
    dataset: Any
    images: ImageFolders
    warnings: Sequence[RunWarning] = ()
    held_out: int = 0
    benchmarks: Sequence[str | Path] = ()
    all_benchmarks: Sequence[str | Path] = ()
    shared: Mapping[str, Sequence[str]] = field(default_factory=dict)
    provenance: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    commands: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    constraints: pd.DataFrame | None = None
    necessity: VisualNecessity | None = None
    screening: Mapping[str, Any] = field(default_factory=dict)
    growth: Context | None = None

    @cached_property
    def comparison(self) -> pd.DataFrame:
        return compare_methods(self.summary)

    @cached_property
    def selections(self) -> list[tuple[str, str]]:
        """(method, fraction) of every coreset except the full data."""
        return [key for key in self.coresets if key[0] != FULL]

    @cached_property
    def kept(self) -> dict[tuple[str, str], NDArray[np.bool_]]:
        """Selection -> (n,) mask of the manifest's samples that it keeps."""
        ids = self.manifest["sample_id"]
        return {key: ids.isin(self.coresets[key]["sample_id"]).to_numpy() for key in self.selections}

    @cached_property
    def sources(self) -> tuple[NDArray[np.int64], list[str]]:
        """((n,) index of each sample's source, names of the sources, the largest first)."""
        names = self.manifest["source"].value_counts()
        order = {name: i for i, name in enumerate(names.index)}
        return self.manifest["source"].map(order).to_numpy(), list(names.index)

    @cached_property
    def devices(self) -> int:
        """Devices of a finetuning job."""
        training = self.settings.get("target_model", {}).get("training", {})
        return training.get("processes", 1) * training.get("nodes", 1)

    @cached_property
    def costs(self) -> pd.DataFrame:
        run = str(self.settings["run"])
        table = self.summary.assign(run=run, base_method=self.summary["method"])
        return costs(table, {run: self.all_benchmarks}, devices=self.devices).set_index(["method", "fraction"])

    @cached_property
    def shown_clusters(self) -> pd.DataFrame:
        """Clusters with members, from the largest share to the smallest; of very many, evenly spaced ones."""
        stats = self.cluster_stats[self.cluster_stats["size"] > 0]
        stats = stats.sort_values("share", ascending=False, kind="stable")
        return stats.iloc[evenly_spaced(len(stats), CLUSTERS_SHOWN)]

    @cached_property
    def shown_samples(self) -> tuple[NDArray[np.int64], int]:
        """(rows of the manifest that the page shows, number of them that are on the map; those come first)."""
        first = self.selections[0] if self.selections else None
        # clusters.parquet is in the order of the manifest
        samples = self.clusters.assign(kept=self.kept[first] if first else False)
        return choose_samples(samples, self.shown_clusters["cluster"].to_numpy())


Section = Callable[[RunResults, Context], Context | None]


def may_i_train(run: RunResults, data: Context) -> Context:
    """The first screen: the answer, the figures behind it, and warnings."""
    method, fraction = run.selections[0] if run.selections else (FULL, "1")
    rows = run.comparison[
        (run.comparison["method"] == method) & np.isclose(run.comparison["fraction"], float(fraction))
    ]
    return {
        "method": method,
        "fraction": float(fraction),
        "answer": answer(run.comparison, method, float(fraction)),
        "enough": ENOUGH,
        "row": None if rows.empty else rows.iloc[0],
        "kept": len(run.coresets[method, fraction]) if run.coresets else 0,
        "samples": len(run.manifest),
        "rejected": len(run.rejected),
        "held_out": run.held_out,
        "others": len(run.selections) - 1,
        "saved": _saved(run, method, float(fraction)),
        "warnings": run.warnings,
        "links": run.links,
    }


def _saved(run, method, fraction):
    """Time of the method and of the full data, in seconds: wall clock of all jobs, and of devices; None if unknown."""
    table = run.costs
    if (method, fraction) not in table.index or not table.loc[(method, fraction), "finetuning"] > 0:
        return None
    cost = table.loc[(method, fraction)]
    has_full = (FULL, 1.0) in table.index and table.loc[(FULL, 1.0), "finetuning"] > 0
    full = table.loc[(FULL, 1.0), "finetuning"] if has_full else cost["finetuning"] / fraction
    return {
        "estimated": not has_full,
        "time": cost["all"],
        "full_time": full,
        "device": cost["device"],
        "full_device": full * run.devices,
        "selection": cost["scoring"] + cost["selecting"],
        "next": cost["finetuning"],
    }


def methods(run: RunResults, data: Context) -> Context:
    """Every method with its interval and its cost."""
    rows = []
    for row in run.comparison.to_dict("records"):
        key = next(
            (k for k in run.coresets if k[0] == row["method"] and np.isclose(float(k[1]), row["fraction"])), None
        )
        cost = run.costs.loc[(row["method"], row["fraction"])]
        rows.append({**row, "samples": len(run.coresets[key]) if key else None, "cost": cost})
    return {"rows": rows, "has_score": run.comparison["score"].notna().any(), "devices": run.devices}


def fractions(run: RunResults, data: Context) -> Context | None:
    """Performance over fractions, drawn from the table of methods; only where there are several."""
    methods_only = run.comparison[run.comparison["method"] != FULL]
    if methods_only["fraction"].nunique() < 2 or methods_only["mean"].isna().all():
        return None
    return {}


def tasks(run: RunResults, data: Context) -> Context:
    """Scores and relative performance of every method on every task."""
    table = run.summary[run.summary["task"] != AVERAGE]
    names = list(table["task"].unique())
    unlearned = unlearned_tasks(run.summary, run.settings.get("evaluation", {}).get("learned_above", 0.0))
    columns = [(row["method"], row["fraction"]) for row in run.comparison.to_dict("records")]
    wide = table.pivot_table(
        index="task", columns=["method", "fraction"], values=["score", "relative_performance"], dropna=False
    )
    rows = [
        {
            "task": task,
            "name": name,
            "metric": table.loc[table["task"] == task, "metric"].iloc[0],
            "unlearned": task in unlearned.index.get_level_values("task"),
            "cells": [
                {value: wide.loc[task].get((value, *column), np.nan) for value in ("score", "relative_performance")}
                for column in columns
            ],
        }
        for task, name in zip(names, short_names(names))
    ]
    return {"rows": rows, "columns": columns, "has_relative": table["relative_performance"].notna().any()}


def sources(run: RunResults, data: Context) -> Context:
    """Make-up of the coresets by source."""
    index, names = run.sources
    totals = np.bincount(index, minlength=len(names))
    kept = {key: np.bincount(index[mask], minlength=len(names)) for key, mask in run.kept.items()}
    rows = [
        {
            "source": name,
            "samples": int(totals[i]),
            "share": totals[i] / totals.sum(),
            "kept": [
                {
                    "samples": int(counts[i]),
                    "share": counts[i] / max(counts.sum(), 1),
                    "ratio": (counts[i] / max(counts.sum(), 1)) / (totals[i] / totals.sum()),
                }
                for counts in kept.values()
            ],
        }
        for i, name in enumerate(names[:SOURCES_SHOWN])
    ]
    return {"rows": rows, "selections": run.selections, "left_out": len(names) - len(rows)}


def constraints(run: RunResults, data: Context) -> Context | None:
    """What the constraints asked for and what the coresets have."""
    return None if run.constraints is None else run.constraints.to_dict("split")


def growth(run: RunResults, data: Context) -> Context | None:
    """What the run takes over from an earlier one."""
    return run.growth


def visual_necessity(run: RunResults, data: Context) -> Context | None:
    """Samples whose answer does not need the image, and those that it makes worse."""
    return None if run.necessity is None else {"necessity": run.necessity}


def leaks(run: RunResults, data: Context) -> Context | None:
    """Samples that show images or ask questions of the evaluation."""
    return run.screening.get("leaks")


def near_duplicates(run: RunResults, data: Context) -> Context | None:
    """Images and samples that repeat others."""
    return run.screening.get("duplicates")


def clusters(run: RunResults, data: Context) -> Context:
    """The clusters as linked plots, and what the plots show."""
    shown = run.shown_clusters
    budgets = [column for column in shown if column.startswith("budget_")]
    sizes, stats = shown["size"], run.cluster_stats
    index, names = run.sources
    labels = run.clusters["cluster"].to_numpy()
    main_source = pd.Series(index).groupby(labels).agg(lambda group: np.bincount(group).argmax())
    data["clusters"] = {
        "cluster": shown["cluster"].tolist(),
        "size": sizes.tolist(),
        "transferability": _rounded(shown["transferability"], 4),
        "density": _rounded(shown["density"], 4),
        "share": [float(f"{value:.3g}") for value in shown["share"]],
        "rank": stats["share"].rank(ascending=False, method="first")[shown.index].astype(int).tolist(),
        "source": main_source.reindex(shown["cluster"]).astype(int).tolist(),
        "fractions": [column.removeprefix("budget_") for column in budgets],
        "budgets": [shown[column].tolist() for column in budgets],
    }
    return {
        "count": len(stats),
        "empty": int((stats["size"] == 0).sum()),
        "shown": len(shown),
        "fractions": data["clusters"]["fractions"],
        "top": shown.head(10).to_dict("records"),
        "budget_column": budgets[0] if budgets else None,
        "main_source": {cluster: names[main_source[cluster]] for cluster in shown["cluster"].head(10)},
    }


def activation_map(run: RunResults, data: Context) -> Context:
    """A map of the activations of some samples. It also adds the samples that the page shows."""
    rows, mapped = run.shown_samples
    components, variance = principal_components(run.activations.rows(rows[:mapped]).astype(np.float32))
    neighbours = _unit_square(neighbour_map(components))
    pca = _unit_square(np.pad(components[:, :2], ((0, 0), (0, 2 - min(2, components.shape[1])))))
    index, names = run.sources
    data["sources"] = names
    data["selections"] = [_selection_name(*key) for key in run.selections]
    data["samples"] = {
        "source": index[rows].tolist(),
        "cluster": run.clusters["cluster"].to_numpy()[rows].tolist(),
        "kept": [np.flatnonzero(mask[rows]).tolist() for mask in run.kept.values()],
        "neighbours": neighbours.ravel().tolist(),
        "pca": pca.ravel().tolist(),
        **describe_samples(run.manifest, rows, run.dataset, run.images),
    }
    return {
        "shown": mapped,
        "samples": len(run.manifest),
        "selections": data["selections"],
        "variance": float(variance[:2].sum()),
        "without_room": data["samples"]["thumbnail"].count(-2),
        "thumbnail_bytes": THUMBNAIL_BYTES,
    }


def similarity(run: RunResults, data: Context) -> Context:
    """Cosine of the centroids as a heat map, over the columns that transferability compares."""
    all_blocks = run.settings.get("selection", {}).get("blocks") != "text"
    columns = slice(None) if all_blocks else run.activations.text_columns
    with_members = run.cluster_stats.loc[run.cluster_stats["size"] > 0, "cluster"].to_numpy()
    shown = with_members[evenly_spaced(len(with_members), CENTROIDS_SHOWN)]
    cosine, order = similarity_order(run.centroids[shown][:, columns])
    percent = np.round(100 * cosine[np.ix_(order, order)]).astype(int)
    data["similarity"] = {"cluster": shown[order].tolist(), "percent": percent.tolist()}
    above = run.settings.get("selection", {}).get("exclude_above", 0.9)
    others = cosine[~np.eye(len(cosine), dtype=bool)]
    return {
        "shown": len(shown),
        "count": len(run.cluster_stats),
        "blocks": "all blocks" if all_blocks else "the text blocks",
        "median": float(np.median(others)) if len(others) else None,
        "copies": int((others > above).sum() // 2),
        "exclude_above": above,
    }


def rejected(run: RunResults, data: Context) -> Context:
    """Rejected samples by reason."""
    counts = run.rejected["reason"].value_counts()
    total = len(run.rejected) + len(run.manifest) + run.held_out
    return {
        "counts": counts.to_dict(),
        "total": total,
        "rows": run.rejected.head(REJECTED_SHOWN).to_dict("records"),
    }


def times(run: RunResults, data: Context) -> Context:
    """Time of each stage."""
    stages = stage_times(run.benchmarks, devices=run.devices)
    return {
        "stages": stages,
        "seconds": sum(stage["seconds"] for stage in stages),
        "device_seconds": sum(stage["device_seconds"] for stage in stages),
        "shared": run.shared,
    }


def provenance(run: RunResults, data: Context) -> Context:
    """Versions, models, digests and settings, and how to repeat the run."""
    settings = yaml.safe_dump(dict(run.settings), sort_keys=False, allow_unicode=True)
    return {"tables": run.provenance, "settings": settings, "commands": run.commands}


# heading, function; the template of a function is templates/sections/<its name>.html
SECTIONS: tuple[tuple[str, Section], ...] = (
    ("May I train on this?", may_i_train),
    ("Methods", methods),
    ("Fractions", fractions),
    ("Tasks", tasks),
    ("Sources", sources),
    ("Constraints", constraints),
    ("Growth", growth),
    ("Clusters", clusters),
    ("Activation map", activation_map),
    ("Cluster similarity", similarity),
    ("Rejected samples", rejected),
    ("Evaluation leaks", leaks),
    ("Near-duplicates", near_duplicates),
    ("Images that are not needed", visual_necessity),
    ("Time", times),
    ("Provenance", provenance),
)


def write_report(path: str | Path, run: RunResults) -> None:
    """Write the report.

    Args:
        path: HTML file to write.
        run: results of the run; text from the dataset is escaped.
    """
    environment = Environment(
        loader=PackageLoader("coincide.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= FILTERS
    data: Context = {}
    sections = []
    for heading, section in SECTIONS:
        context = section(run, data)
        if context is not None:
            name = section.__name__
            body = environment.get_template(f"sections/{name}.html").render(run=run.settings["run"], **context)
            sections.append({"id": name, "heading": heading, "body": body})
    page = environment.get_template("report.html").render(
        run=run.settings["run"],
        sections=sections,
        # these are HTML, not text: the template does not escape them
        style=_resource("templates/report.css"),
        plotly=_resource("vendor/plotly-cartesian.min.js"),
        script=_resource("templates/report.js"),
        data=script_json(data),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def script_json(value: Any) -> str:
    """JSON for a script tag: a browser finds no end of the tag and no comment in it.

    >>> script_json("</script><!--")
    '"\\\\u003c/script\\\\u003e\\\\u003c!--"'
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _resource(name):
    return files("coincide.reporting").joinpath(name).read_text(encoding="utf-8")


def _selection_name(method, fraction):
    return f"{method} {100 * float(fraction):.3g}%"


def _rounded(values, digits):
    return [None if pd.isna(value) else round(float(value), digits) for value in values]


def _unit_square(points):
    """Positions scaled to integers from 0 to 1000, with the proportions kept."""
    span = max(np.ptp(points[:, 0]), np.ptp(points[:, 1]), 1e-12)
    return np.round(1000 * (points - points.min(axis=0)) / span).astype(int)


def _percent(value, digits=1):
    return "–" if value is None or pd.isna(value) else f"{100 * value:.{digits}f}%"


def _number(value, digits=3):
    return "–" if value is None or pd.isna(value) else f"{value:,.{digits}f}"


def _points(value):
    """A difference of shares in percentage points, with its sign."""
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def _duration(seconds):
    if seconds is None or pd.isna(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _attribute(value):
    """A number for data-value, empty if there is none."""
    return "" if value is None or pd.isna(value) else f"{value:.6g}"


FILTERS: dict[str, Callable[..., str]] = {
    "percent": _percent,
    "number": _number,
    "points": _points,
    "duration": _duration,
    "attribute": _attribute,
    "selection": lambda key: _selection_name(*key),
}
