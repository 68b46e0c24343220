"""What two coresets have in common, by source and cluster, and where their budgets differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from coincide.base.errors import UserError
from coincide.base.files import replacing
from coincide.base.markdown import markdown_table

LARGEST_MOVES = 10  # clusters listed in each direction
SOURCES_LISTED = 30
SIDES = ("a", "b")


@dataclass(frozen=True)
class CoresetComparison:
    """Two coresets, or two runs with several coresets each.

    Attributes:
        names: of the two sides, a and b.
        is_same_clustering: whether both have the same clusters, sample by sample.
        coresets: one row per pair of coresets: coreset, kept_a, kept_b, shared, expected (samples that two random
            draws of these sizes share), jaccard (shared samples relative to those that either keeps), moved (samples
            of the budget of a that b spends on other clusters of a).
        sources: per pair and source: coreset, source, samples, kept_a, kept_b, shared, difference (kept_b - kept_a).
        clusters: per pair and cluster of a: coreset, cluster, source (the largest one), samples, kept_a, kept_b
            (members of this cluster of a that b keeps), shared, difference, and of the cluster of b with the largest
            overlap: nearest_b, overlap (common members relative to those of either cluster).
    """

    names: tuple[str, str]
    is_same_clustering: bool
    coresets: pd.DataFrame
    sources: pd.DataFrame
    clusters: pd.DataFrame


def compare_coresets(
    samples_a: pd.DataFrame,
    samples_b: pd.DataFrame,
    pairs: Mapping[str, tuple[pd.Series, pd.Series]],
    *,
    names: tuple[str, str] = SIDES,
) -> CoresetComparison:
    """Compare coresets of two runs, whose clusters may differ.

    Samples are matched by their ids. Budgets are compared over the clusters of a: of each, how many members a keeps
    and how many b keeps. That holds for any clustering of b.

    Args:
        samples_a, samples_b: samples of each run: columns sample_id, source, cluster.
        pairs: label -> sample ids of a coreset of a and of one of b.
        names: of the two sides.

    Raises:
        UserError: the runs have no sample in common.
    """
    samples = samples_a.merge(samples_b, on="sample_id", how="outer", suffixes=SIDES)
    in_both = samples["clustera"].notna() & samples["clusterb"].notna()
    if not in_both.any():
        raise UserError(f"{names[0]} and {names[1]} have no sample in common: they are of different datasets")
    samples["source"] = samples["sourcea"].fillna(samples["sourceb"])
    overlaps = best_overlaps(samples.loc[in_both, "clustera"], samples.loc[in_both, "clusterb"])
    is_same = bool(in_both.all() and (samples["clustera"] == samples["clusterb"]).all())
    tables: dict[str, list[pd.DataFrame]] = {"coresets": [], "sources": [], "clusters": []}
    for label, (kept_a, kept_b) in pairs.items():
        samples["kept_a"] = samples["sample_id"].isin(kept_a)
        samples["kept_b"] = samples["sample_id"].isin(kept_b)
        samples["shared"] = samples["kept_a"] & samples["kept_b"]
        clusters = _count(samples[samples["clustera"].notna()], "clustera").rename(columns={"clustera": "cluster"})
        clusters = clusters.merge(_largest_source(samples), on="cluster").merge(overlaps, on="cluster", how="left")
        by_pair = {
            "coresets": _totals(samples, clusters),
            "sources": _count(samples, "source"),
            "clusters": clusters.astype({"cluster": "int32", "nearest_b": "Int32"}),
        }
        for name, table in by_pair.items():
            tables[name].append(table.assign(coreset=label))
    columns = {
        "coresets": ["coreset", "kept_a", "kept_b", "shared", "expected", "jaccard", "moved"],
        "sources": ["coreset", "source", "samples", "kept_a", "kept_b", "shared", "difference"],
        "clusters": [
            *("coreset", "cluster", "source", "samples", "kept_a", "kept_b", "shared", "difference"),
            *("nearest_b", "overlap"),
        ],
    }
    joined = {name: pd.concat(tables[name], ignore_index=True)[columns[name]] for name in tables}
    return CoresetComparison(names, is_same, **joined)


def best_overlaps(clusters_a: pd.Series, clusters_b: pd.Series) -> pd.DataFrame:
    """For each cluster of a the cluster of b with the largest overlap: columns cluster, nearest_b, overlap.

    The overlap is the number of common members divided by the number of members of either cluster. Of equal overlaps
    the lowest cluster of b counts.

    Args:
        clusters_a, clusters_b: cluster of each sample in both runs.
    """
    pairs = pd.DataFrame({"cluster": clusters_a, "nearest_b": clusters_b})
    common = pairs.groupby(["cluster", "nearest_b"]).size().rename("common").reset_index()
    of_either = common["cluster"].map(pairs["cluster"].value_counts()) + common["nearest_b"].map(
        pairs["nearest_b"].value_counts()
    )
    common["overlap"] = common["common"] / (of_either - common["common"])
    common = common.sort_values(["cluster", "overlap", "nearest_b"], ascending=[True, False, True])
    return common.drop_duplicates("cluster")[["cluster", "nearest_b", "overlap"]]


def _count(samples, key):
    """Samples, and those that a, b and both keep, per value of a column."""
    by_key = samples.groupby(key)[["kept_a", "kept_b", "shared"]]
    counts = by_key.sum().assign(samples=by_key.size()).reset_index()
    return counts.assign(difference=counts["kept_b"] - counts["kept_a"])


def _largest_source(samples):
    """The most frequent source of each cluster of a."""
    counts = samples.groupby(["clustera", "source"]).size().rename("count").reset_index()
    counts = counts.sort_values(["clustera", "count", "source"], ascending=[True, False, True])
    return counts.drop_duplicates("clustera")[["clustera", "source"]].rename(columns={"clustera": "cluster"})


def _totals(samples, clusters):
    """One row: what the two coresets have in common."""
    kept_a, kept_b, shared = (int(samples[name].sum()) for name in ("kept_a", "kept_b", "shared"))
    # samples that b leaves of the clusters where it keeps fewer
    moved = int((clusters["kept_a"] - clusters["kept_b"]).clip(lower=0).sum())
    either = kept_a + kept_b - shared
    row = {
        "kept_a": kept_a,
        "kept_b": kept_b,
        "shared": shared,
        "expected": kept_a * kept_b / len(samples),
        "jaccard": shared / either if either else 1.0,
        "moved": moved,
    }
    return pd.DataFrame([row])


def largest_moves(clusters: pd.DataFrame) -> pd.DataFrame:
    """The clusters of one pair of coresets with the largest differences: first those of which b keeps more, then fewer.

    Args:
        clusters: rows of `CoresetComparison.clusters` of one pair.
    """
    ordered = clusters.sort_values("difference", ascending=False, kind="stable")
    gains = ordered[ordered["difference"] > 0].head(LARGEST_MOVES)
    losses = ordered[ordered["difference"] < 0].tail(LARGEST_MOVES)
    return pd.concat([gains, losses])


def as_text(comparison: CoresetComparison) -> str:
    """The comparison as Markdown."""
    a, b = comparison.names
    paragraphs = [f"Coresets of a: {a}, and of b: {b}.", markdown_table(_coreset_cells(comparison.coresets))]
    if comparison.is_same_clustering:
        paragraphs.append("Both have the same clusters.")
    else:
        paragraphs.append(
            f"The clusterings differ. {_overlap_text(comparison)} Budgets are compared over the clusters of a: of "
            "each, how many members a keeps and how many b keeps."
        )
    for label in comparison.coresets["coreset"]:
        sources, moves = _of_pair(comparison, label)
        paragraphs += [f"{label}, by source:", markdown_table(_source_cells(sources))]
        if len(moves):
            title = f"{label}, clusters of a with the largest differences:"
            paragraphs += [title, markdown_table(_cluster_cells(moves, comparison.is_same_clustering))]
        else:
            paragraphs.append(f"{label}: of every cluster of a, both keep the same number of samples.")
    return "\n\n".join(paragraphs) + "\n"


def write_page(comparison: CoresetComparison, path: str | Path) -> None:
    """Write the comparison as one HTML file that opens without a network; text of the dataset is escaped."""
    environment = Environment(loader=PackageLoader("coincide.reporting"), autoescape=select_autoescape(default=True))
    pairs = []
    for label in comparison.coresets["coreset"]:
        sources, moves = _of_pair(comparison, label)
        largest = max(1, moves["difference"].abs().max()) if len(moves) else 1
        pairs.append(
            {
                "label": label,
                "sources": _source_cells(sources),
                "source_rows": sources.to_dict("records"),
                "moves": _cluster_cells(moves, comparison.is_same_clustering),
                "move_widths": (100 * moves["difference"] / largest).round(1).tolist(),
            }
        )
    page = environment.get_template("coreset_comparison.html").render(
        names=comparison.names,
        coresets=_coreset_cells(comparison.coresets),
        is_same_clustering=comparison.is_same_clustering,
        overlap=_overlap_text(comparison),
        pairs=pairs,
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _of_pair(comparison, label):
    """(sources, clusters with the largest moves) of one pair of coresets; sources with the largest difference first."""
    sources = comparison.sources[comparison.sources["coreset"] == label]
    sources = sources.sort_values("difference", key=abs, ascending=False, kind="stable").head(SOURCES_LISTED)
    return sources, largest_moves(comparison.clusters[comparison.clusters["coreset"] == label])


def _overlap_text(comparison):
    clusters = comparison.clusters[comparison.clusters["coreset"] == comparison.coresets["coreset"].iloc[0]]
    overlap = clusters["overlap"].fillna(0)
    mean = (overlap * clusters["samples"]).sum() / clusters["samples"].sum()
    return (
        f"A cluster of a has on average {mean:.0%} of its members in common with the most similar cluster of b, "
        f"relative to the members of either; {(overlap >= 0.5).sum():,} of {len(clusters):,} have at least half."
    )


def _coreset_cells(coresets):
    rows = [
        {
            "coreset": row.coreset,
            "kept by a": f"{row.kept_a:,}",
            "kept by b": f"{row.kept_b:,}",
            "shared": f"{row.shared:,}",
            "of a": _share(row.shared, row.kept_a),
            "of b": _share(row.shared, row.kept_b),
            "expected of random draws": f"{row.expected:,.0f}",
            "budget of a on other clusters": f"{row.moved:,} ({_share(row.moved, row.kept_a)})",
        }
        for row in coresets.itertuples()
    ]
    return pd.DataFrame(rows)


def _source_cells(sources):
    rows = [
        {
            "source": row.source,
            "samples": f"{row.samples:,}",
            "kept by a": f"{row.kept_a:,}",
            "kept by b": f"{row.kept_b:,}",
            "shared": f"{row.shared:,}",
            "b - a": f"{row.difference:+,}",
        }
        for row in sources.itertuples()
    ]
    return pd.DataFrame(rows)


def _cluster_cells(clusters, is_same_clustering):
    rows = []
    for row in clusters.itertuples():
        cells = {
            "cluster of a": row.cluster,
            "largest source": row.source,
            "samples": f"{row.samples:,}",
            "kept by a": f"{row.kept_a:,}",
            "kept by b": f"{row.kept_b:,}",
            "b - a": f"{row.difference:+,}",
        }
        if not is_same_clustering:
            has_nearest = not pd.isna(row.nearest_b)
            cells["cluster of b (overlap)"] = f"{row.nearest_b} ({row.overlap:.0%})" if has_nearest else "–"
        rows.append(cells)
    return pd.DataFrame(rows)


def _share(count, total):
    return f"{count / total:.1%}" if total else "–"
