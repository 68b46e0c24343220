"""What a run takes over from the finished run that its dataset extends, and how well new samples fit its centroids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from coincide.base.activation_store import Activations
from coincide.base.sections import Config
from coincide.clustering.fit import centroid_fit
from coincide.selection.growth import read_growth

SOURCES_SHOWN = 8
MANY = 3  # times the expected share, above which new samples are said to need clusters of their own
FEWEST = 5  # samples that fit badly, below which the share may be chance
CLUSTER_ANEW = "set clustering.centroids to null, which clusters all samples anew"
CORESET_COLUMNS = ["coreset", "samples", "kept of the earlier coreset", "other old", "new"]


@dataclass(frozen=True)
class RunGrowth:
    """A run and the finished run that it takes samples, activations or centroids from.

    Attributes:
        folder: of the finished run whose activations are reused; None: none are.
        counts: numbers of samples: all; new, by their ids; gone, which only the finished run has; reused, whose
            activations are those of the finished run, and changed, old ones with another record (both missing if the
            activations do not say).
        coresets: table of CORESET_COLUMNS, one row per coreset, in samples; None: they take over nothing.
        lost: "method at fraction" -> number of earlier picks that the dataset does not have.
        centroids: path of the centroids that samples are assigned to; None: they are clustered.
        fit: table of `coincide.clustering.fit.centroid_fit`; None: samples are clustered.
        quantile: clustering.poor_fit.
    """

    folder: str | None
    counts: Mapping[str, int] = field(default_factory=dict)
    coresets: pd.DataFrame | None = None
    lost: Mapping[str, int] = field(default_factory=dict)
    centroids: str | None = None
    fit: pd.DataFrame | None = None
    quantile: float = 0.01


def read_run_growth(
    config: Config,
    *,
    manifest: str | Path,
    activations: str | Path,
    clusters: str | Path,
    coresets: Mapping[tuple[str, str], str | Path],
) -> RunGrowth | None:
    """What a run takes over; None if it neither extends a run nor uses its centroids.

    Args:
        config: Config of the run.
        manifest, activations, clusters: paths of the run's artefacts after extraction.
        coresets: (method, fraction) -> path of coreset.parquet.
    """
    folder, centroids = config.dataset.extends, config.clustering.centroids
    if folder is None and centroids is None:
        return None
    samples = pd.read_parquet(manifest, columns=["sample_id", "source"])
    values: dict[str, Any] = {}
    if folder is not None:
        old = pd.read_parquet(Path(folder) / "manifest.parquet", columns=["sample_id"])["sample_id"]
        values["counts"] = count_samples(samples["sample_id"], old, Activations(activations).metadata)
    if folder is not None and config.selection.takes_over:
        rows, lost = [], {}
        for (method, fraction), path in coresets.items():
            if method == "full" or (growth := read_growth(config, method, float(fraction))) is None:
                continue
            name, ids = f"{method} at {fraction}", pd.read_parquet(path, columns=["sample_id"])["sample_id"]
            kept, is_old = ids.isin(growth.picks), ids.isin(growth.old)
            rows.append([name, len(ids), int(kept.sum()), int((is_old & ~kept).sum()), int((~is_old).sum())])
            if gone := len(growth.picks) - int(kept.sum()):
                lost[name] = gone
        values |= {"coresets": pd.DataFrame(rows, columns=CORESET_COLUMNS), "lost": lost}
    if centroids is not None:
        columns = ["sample_id", "cluster", "similarity"]
        paths = (Path(centroids).with_name("clusters.parquet"), clusters)
        earlier, assigned = (pd.read_parquet(path, columns=columns) for path in paths)
        values["fit"] = centroid_fit(earlier, assigned, samples, quantile=config.clustering.poor_fit)
    return RunGrowth(folder, centroids=centroids, quantile=config.clustering.poor_fit, **values)


def count_samples(sample_ids: pd.Series, old: pd.Series, metadata: list[dict[str, Any]]) -> dict[str, int]:
    """The counts of `RunGrowth`.

    Args:
        sample_ids: of the run.
        old: sample ids of the finished run.
        metadata: of each shard of the run's activations.
    """
    is_old = sample_ids.isin(old)
    counts = {"all": len(sample_ids), "new": int((~is_old).sum()), "gone": int((~old.isin(sample_ids)).sum())}
    if all("reused" in shard for shard in metadata):
        counts["reused"] = sum(shard["reused"] for shard in metadata)
        counts["changed"] = int(is_old.sum()) - counts["reused"]
    return counts


def growth_lines(growth: RunGrowth | None) -> list[str]:
    """What a run took over, one line each, for its summary and its console."""
    lines: list[str] = []
    if growth is None:
        return lines
    if growth.folder is not None:
        lines.append(_extraction_line(growth.folder, growth.counts))
    if growth.coresets is not None:
        lines += [
            f"{name}: {samples:,} samples, {kept:,} of them kept of the earlier coreset, {other:,} other old ones, "
            f"{new:,} new ones."
            for name, samples, kept, other, new in growth.coresets.itertuples(index=False)
        ]
    if growth.fit is not None:
        new, badly = growth.fit["new"].sum(), growth.fit["badly"].sum()
        lines.append(
            f"The clusters are those of {growth.centroids}. {badly:,} of {new:,} new samples ({_share(badly, new)}) "
            f"fit them badly: relative to the width of their cluster, they are farther from the centroid than "
            f"{_percent(1 - growth.quantile)} of the earlier "
            f"samples ({_percent(growth.quantile)} if they are alike)."
        )
    return lines


def _extraction_line(folder, counts):
    """What the reference model read, and what was reused."""
    gone = f" {counts['gone']:,} samples of it are not in the dataset." if counts["gone"] else ""
    if "reused" not in counts:
        return f"The dataset extends {folder}: {counts['new']:,} of {counts['all']:,} samples are new.{gone}"
    changed = f", {counts['changed']:,} changed ones" if counts["changed"] else ""
    return (
        f"The dataset extends {folder}: the activations of {counts['reused']:,} of {counts['all']:,} samples are "
        f"reused; those of {counts['new']:,} new ones{changed} were computed.{gone}"
    )


def growth_warnings(growth: RunGrowth | None) -> Iterator[tuple[str, str]]:
    """(what is wrong, what to do) where a run takes over what does not fit it."""
    if growth is None:
        return
    if growth.fit is not None:
        new, badly = int(growth.fit["new"].sum()), int(growth.fit["badly"].sum())
        table = growth.fit[growth.fit["badly"] > 0]
        if badly >= FEWEST and badly > MANY * growth.quantile * new:
            shown = table.head(SOURCES_SHOWN).itertuples(index=False)
            sources = ", ".join(f"{source} ({_share(bad, number)})" for source, number, bad in shown)
            more = f" and {len(table) - SOURCES_SHOWN} more" if len(table) > SOURCES_SHOWN else ""
            yield (
                f"{badly:,} of {new:,} new samples ({_share(badly, new)}; {_percent(growth.quantile)} if they are like "
                f"the earlier ones) fit the centroids of {growth.centroids} badly, by source: {sources}{more}",
                CLUSTER_ANEW,
            )
    for name, count in growth.lost.items():
        yield (
            f"the dataset lacks {count:,} sample{'s' * (count != 1)} of the earlier coreset ({name}), or they were "
            "rejected, and so they are not kept",
            "add them to the dataset again, or accept it",
        )


def growth_section(growth: RunGrowth | None) -> dict[str, Any] | None:
    """Values of the template growth.html."""
    if growth is None:
        return None
    fit = growth.fit
    if fit is not None:
        fit = fit.assign(share=[_share(badly, new) for _, new, badly in fit.itertuples(index=False)])
        fit = fit.set_axis(["source", "new samples", "fit badly", "share"], axis=1)
    tables = {"coresets": growth.coresets, "fit": fit}
    return {
        "lines": growth_lines(growth),
        **{name: None if table is None else table.to_dict("split") for name, table in tables.items()},
    }


def _share(part, whole):
    return _percent(part / whole if whole else 0.0)


def _percent(value):
    return f"{value:.1%}"
