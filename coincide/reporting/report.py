"""The report that a person looks at: one HTML file that opens without a network."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, select_autoescape

from coincide.base.files import replacing
from coincide.dataset.conversation import IMAGE_MARK
from coincide.dataset.formats import to_llava
from coincide.dataset.images import ImageError, image_names, open_image
from coincide.reporting.summary import AVERAGE, headline, short_names

CLUSTERS_SHOWN = 8
SAMPLES_A_CLUSTER = 8
THUMBNAIL = 96  # pixels


def write_report(
    path,
    *,
    summary,
    manifest,
    rejected,
    clusters,
    cluster_stats,
    coreset,
    dataset,
    images,
    figures,
    benchmarks,
    shared,
    settings,
):
    """Write the report.

    Args:
        path: HTML file to write.
        summary, manifest, rejected, clusters, cluster_stats: tables of the run.
        coreset: the coreset whose samples are marked in the strips.
        dataset: the dataset, of `coincide.dataset.formats`; its text is escaped.
        images: folder that image names are relative to.
        figures: dict of name -> SVG file.
        benchmarks: folders of Snakemake's benchmark files.
        shared: dict of folder -> stages that another run made there for this one.
        settings: the config.
    """
    tasks = [task for task in summary["task"].unique() if task != AVERAGE]
    environment = Environment(loader=PackageLoader("coincide.reporting"), autoescape=select_autoescape(default=True))
    page = environment.get_template("report.html").render(
        run=settings["run"],
        headline=_headline(summary),
        tasks=dict(zip(tasks, short_names(tasks))),
        samples=len(manifest),
        rejected=rejected["reason"].value_counts().to_dict(),
        rejected_rows=rejected.head(20).to_dict("records"),
        figures={name: _data_url(Path(file).read_bytes(), "image/svg+xml") for name, file in figures.items()},
        stages=stage_times(benchmarks),
        shared=shared,
        strips=_strips(manifest, clusters, cluster_stats, coreset, dataset, images),
        kept=len(coreset),
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
    )
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8")


def stage_times(folders):
    """Seconds and peak memory of each stage, from Snakemake's benchmark files.

    Returns:
        list of dicts of stage, jobs, seconds (summed over jobs), longest (seconds), memory (MB),
        share (of the sum of all stages).
    """
    rows = []
    for folder, file in ((f, file) for f in folders for file in sorted(Path(f).rglob("*.tsv"))):
        table = pd.read_csv(file, sep="\t", na_values=["-", "NA"])
        stage = file.relative_to(folder).parts[0].removesuffix(".tsv")
        rows.append({"stage": stage, "seconds": table["s"].iloc[-1], "memory": table["max_rss"].iloc[-1]})
    if not rows:
        return []
    table = pd.DataFrame(rows).groupby("stage")
    stages = pd.DataFrame(
        {
            "jobs": table.size(),
            "seconds": table["seconds"].sum(),
            "longest": table["seconds"].max(),
            "memory": table["memory"].max(),
        }
    ).sort_values("seconds", ascending=False)
    stages["share"] = stages["seconds"] / stages["seconds"].sum()
    return stages.reset_index().to_dict("records")


def _headline(summary):
    rows = []
    for (method, fraction), row in headline(summary).iterrows():
        values = {key: None if pd.isna(value) else float(value) for key, value in row.items()}
        rows.append({"method": method, "fraction": fraction, **values})
    return rows


def _strips(manifest, clusters, cluster_stats, coreset, dataset, images):
    """A handful of clusters from the largest share to the smallest, with some members each."""
    by_share = cluster_stats[cluster_stats["size"] > 0].sort_values("share", ascending=False, kind="stable")
    chosen = by_share.iloc[np.unique(np.linspace(0, len(by_share) - 1, CLUSTERS_SHOWN).astype(int))]
    kept = set(coreset["sample_id"])
    table = clusters.merge(manifest[["sample_id", "source", "position"]], on="sample_id")
    strips, positions = [], set()
    for row in chosen.itertuples():
        members = table[table["cluster"] == row.cluster].assign(kept=lambda t: t["sample_id"].isin(kept))
        shown = members.sort_values(["kept", "similarity"], ascending=False, kind="stable")
        # picked ones first, half of the strip at most, then others, nearest to the centroid first
        picked, others = shown[shown["kept"]], shown[~shown["kept"]]
        shown = pd.concat([picked.head(max(SAMPLES_A_CLUSTER // 2, SAMPLES_A_CLUSTER - len(others))), others])
        shown = list(shown.head(SAMPLES_A_CLUSTER).itertuples())
        positions.update(member.position for member in shown)
        strips.append(
            {
                "cluster": row.cluster,
                "size": row.size,
                "kept": int(members["kept"].sum()),
                "transferability": row.transferability,
                "density": row.density,
                "sources": ", ".join(f"{name} {n}" for name, n in members["source"].value_counts().head(3).items()),
                "members": shown,
            }
        )
    wanted = sorted(positions)
    records = dict(zip(wanted, map(to_llava, dataset.pick(wanted))))
    for strip in strips:
        strip["members"] = [_member(member, records[member.position], images) for member in strip["members"]]
    return strips


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
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _data_url(buffer.getvalue(), "image/png")


def _shorten(text, length=90):
    return text if len(text) <= length else text[: length - 1] + "…"


def _data_url(content, kind):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
