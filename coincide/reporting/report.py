"""The HTML report of a run: one file that opens without a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, select_autoescape

from coincide.base.files import replacing
from coincide.dataset.conversation import IMAGE_MARK
from coincide.dataset.formats import to_llava
from coincide.dataset.images import ImageError, ImageFolders, image_names, open_image
from coincide.reporting.summary import AVERAGE, headline_table, short_names
from coincide.reporting.visual_necessity import VisualNecessity

CLUSTERS_SHOWN = 8
SAMPLES_PER_CLUSTER = 8
REJECTED_SHOWN = 20
THUMBNAIL_PIXELS = 96


def write_report(
    path: str | Path,
    *,
    summary: pd.DataFrame,
    manifest: pd.DataFrame,
    rejected: pd.DataFrame,
    clusters: pd.DataFrame,
    cluster_stats: pd.DataFrame,
    coreset: pd.DataFrame,
    dataset: Any,
    images: ImageFolders,
    figures: Mapping[str, str | Path],
    benchmarks: Iterable[str | Path],
    shared: Mapping[str, Sequence[str]],
    settings: Mapping[str, Any],
    constraints: pd.DataFrame | None = None,
    necessity: VisualNecessity | None = None,
    screening: Mapping[str, Any] | None = None,
) -> None:
    """Write the report.

    Args:
        path: HTML file to write.
        summary, manifest, rejected, clusters, cluster_stats: tables of the run.
        coreset: the coreset whose samples are highlighted among the members of the clusters.
        dataset: as `coincide.dataset.formats.open_dataset` returns it; its text is escaped.
        images: folder that image names are relative to.
        figures: name -> SVG file.
        benchmarks: folders of Snakemake's benchmark files.
        shared: folder of another run -> stages that it computed for this run as well.
        settings: the config.
        constraints: table of `coincide.reporting.summary.constraint_table`; None: there are none.
        necessity: of `coincide.reporting.visual_necessity`; None: the report has no such section.
        screening: evaluation leaks and near-duplicates (`coincide.reporting.leaks.report_section`).
    """
    tasks = [task for task in summary["task"].unique() if task != AVERAGE]
    environment = Environment(loader=PackageLoader("coincide.reporting"), autoescape=select_autoescape(default=True))
    page = environment.get_template("report.html").render(
        run=settings["run"],
        headline=_headline_rows(summary),
        tasks=dict(zip(tasks, short_names(tasks))),
        samples=len(manifest),
        rejected=rejected["reason"].value_counts().to_dict(),
        rejected_rows=rejected.head(REJECTED_SHOWN).to_dict("records"),
        figures={name: _data_url(Path(file).read_bytes(), "image/svg+xml") for name, file in figures.items()},
        stages=stage_times(benchmarks),
        shared=shared,
        strips=_cluster_strips(manifest, clusters, cluster_stats, coreset, dataset, images),
        kept=len(coreset),
        constraints=None if constraints is None else constraints.to_dict("split"),
        necessity=necessity,
        **(screening or {}),
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def stage_times(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Seconds and peak memory of each stage, from Snakemake's benchmark files.

    Args:
        folders: each has a file <stage>.tsv or a folder <stage>/ of files per stage.

    Returns:
        one dict per stage, the longest first: stage, jobs, seconds (summed over jobs), longest (seconds of the longest
        job), memory (peak over jobs, MB), share (of the seconds of all stages).
    """
    rows = []
    for folder in folders:
        for file in sorted(Path(folder).rglob("*.tsv")):
            last = pd.read_csv(file, sep="\t", na_values=["-", "NA"]).iloc[-1]
            stage = file.relative_to(folder).parts[0].removesuffix(".tsv")
            rows.append({"stage": stage, "seconds": last["s"], "memory": last["max_rss"]})
    if not rows:
        return []
    by_stage = pd.DataFrame(rows).groupby("stage")
    stages = pd.DataFrame(
        {
            "jobs": by_stage.size(),
            "seconds": by_stage["seconds"].sum(),
            "longest": by_stage["seconds"].max(),
            "memory": by_stage["memory"].max(),
        }
    ).sort_values("seconds", ascending=False)
    stages["share"] = stages["seconds"] / stages["seconds"].sum()
    return stages.reset_index().to_dict("records")


def _headline_rows(summary):
    rows = []
    for (method, fraction), row in headline_table(summary).iterrows():
        values = {key: None if pd.isna(value) else float(value) for key, value in row.items()}
        rows.append({"method": method, "fraction": fraction, **values})
    return rows


def _cluster_strips(manifest, clusters, cluster_stats, coreset, dataset, images):
    """Clusters from the largest share to the smallest, evenly spaced in this order, with some members each."""
    by_share = cluster_stats[cluster_stats["size"] > 0].sort_values("share", ascending=False, kind="stable")
    shown_clusters = by_share.iloc[np.unique(np.linspace(0, len(by_share) - 1, CLUSTERS_SHOWN).astype(int))]
    samples = clusters.merge(manifest[["sample_id", "source", "position"]], on="sample_id")
    samples["kept"] = samples["sample_id"].isin(set(coreset["sample_id"]))
    strips = []
    for cluster in shown_clusters.itertuples():
        members = samples[samples["cluster"] == cluster.cluster]
        strips.append(
            {
                "cluster": cluster.cluster,
                "size": cluster.size,
                "kept": int(members["kept"].sum()),
                "transferability": cluster.transferability,
                "density": cluster.density,
                "sources": ", ".join(f"{name} {n}" for name, n in members["source"].value_counts().head(3).items()),
                "members": list(_members_to_show(members).itertuples()),
            }
        )
    positions = sorted({member.position for strip in strips for member in strip["members"]})
    records = dict(zip(positions, map(to_llava, dataset.pick(positions))))
    for strip in strips:
        strip["members"] = [_member(member, records[member.position], images) for member in strip["members"]]
    return strips


def _members_to_show(members):
    """Kept members first, then others, each by descending similarity to the centroid.

    Kept members fill at most half of the strip, or more where there are too few others.
    """
    members = members.sort_values("similarity", ascending=False, kind="stable")
    kept, others = members[members["kept"]], members[~members["kept"]]
    n_kept = max(SAMPLES_PER_CLUSTER // 2, SAMPLES_PER_CLUSTER - len(others))
    return pd.concat([kept.head(n_kept), others]).head(SAMPLES_PER_CLUSTER)


def _member(member, record, images):
    turns = [turn["value"].replace(IMAGE_MARK, "").strip() for turn in record["conversations"][:2]]
    names = image_names(record)
    return {
        "id": member.sample_id,
        "kept": member.kept,
        "image": _thumbnail(images, names[0]) if names else None,
        "question": _shorten(turns[0]),
        "answer": _shorten(turns[1]),
    }


def _thumbnail(folder, name):
    try:
        image = open_image(folder, name)
    except ImageError:
        return None
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _data_url(buffer.getvalue(), "image/png")


def _shorten(text, length=90):
    return text if len(text) <= length else text[: length - 1] + "…"


def _data_url(content, kind):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
