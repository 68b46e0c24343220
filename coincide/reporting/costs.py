"""What each method costs: the times of its jobs, from Snakemake's benchmark files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from coincide.reporting.summary import AVERAGE

COINCIDE, FULL = "coincide", "full"
DEVICE_STAGES = ("activations", "clip_scores", "difficulty", "finetune_model", "evaluate_model", "check_transfer")
# Benchmark files of the jobs that compute what a method scores samples with; methods not listed use activations only.
SCORING_JOBS: Mapping[str, tuple[str, ...]] = {
    COINCIDE: ("activations/*.tsv", "merge.tsv", "clusters.tsv", "transferability.tsv", "density/*.tsv"),
    "self_sup": ("activations/*.tsv", "merge.tsv", "clusters.tsv"),
    "clip_score": ("clip_scores/*.tsv",),
    "self_filter": ("clip_scores/*.tsv", "difficulty.tsv"),
    "random": (),
}
ACTIVATION_JOBS = ("activations/*.tsv", "merge.tsv")


def costs(table: pd.DataFrame, benchmarks: Mapping[str, Sequence[str | Path]], *, devices: int = 1) -> pd.DataFrame:
    """Job time of each method, and its ratio to that of finetuning on the full data.

    Times are wall-clock seconds of jobs, not core-seconds; with one GPU per job they are device seconds. Jobs that
    several methods depend on are counted for each of them. If the per-sample metrics are computed along with the
    activations, that longer pass is counted.

    Args:
        table: of `combine_summaries`.
        benchmarks: run -> folders of benchmark files: that of the run first, then those of the runs whose results it
            shares.

        devices: devices of a finetuning job.

    Returns:
        one row per method and fraction, means over replicates: scoring, selecting, finetuning, all (their sum; all in
        seconds), of_full (all ÷ all of the full data), device (device seconds of reading the samples with a model and
        of finetuning).
    """
    keys = ["run", "target", "seed", "method", "base_method", "fraction"]
    rows = []
    for run, target, seed, method, base_method, fraction in table.loc[table["task"] == AVERAGE, keys].to_numpy():
        folders, fraction_name = benchmarks[run], f"{fraction:g}"
        scoring, selecting = _scoring_and_selecting_seconds(folders, base_method, fraction_name)
        finetuning = _seconds(folders, f"finetune_model/{target}-{base_method}-{fraction_name}-{seed}.tsv")
        device = _reading_seconds(folders, base_method) + finetuning * devices
        rows.append([method, float(fraction_name), scoring, selecting, finetuning, device])
    models = pd.DataFrame(rows, columns=["method", "fraction", "scoring", "selecting", "finetuning", "device"])
    models["all"] = models[["scoring", "selecting", "finetuning"]].sum(axis=1)
    means = models.groupby(["method", "fraction"], as_index=False).mean()
    full = means.loc[means["method"] == FULL, "all"].mean()
    return means.assign(of_full=means["all"] / full)


def _scoring_and_selecting_seconds(folders, method, fraction):
    if method == FULL:
        return 0.0, 0.0
    if method == COINCIDE:
        budget, picks, coreset = f"budget/{fraction}.tsv", f"picks/{fraction}-*.tsv", f"coincide_coreset/{fraction}.tsv"
        selecting_jobs = ["shares.tsv", budget, picks, coreset]
    else:
        selecting_jobs = [f"method_coreset/{method}-{fraction}.tsv"]
    scoring = sum(_seconds(folders, job) for job in SCORING_JOBS.get(method, ACTIVATION_JOBS))
    return scoring, sum(_seconds(folders, job) for job in selecting_jobs)


def _reading_seconds(folders, method):
    """Seconds of the jobs that read the samples with a model."""
    if method == FULL:
        return 0.0
    jobs = [job for job in SCORING_JOBS.get(method, ACTIVATION_JOBS) if job.startswith(DEVICE_STAGES)]
    return sum(_seconds(folders, job) for job in jobs)


def _seconds(folders, pattern):
    """Total seconds of the jobs whose benchmark files match, in the first folder that has any; 0 if none has."""
    for folder in folders:
        if paths := sorted(Path(folder).glob(pattern)):
            return sum(pd.read_csv(path, sep="\t")["s"].sum() for path in paths)
    return 0.0


def stage_times(folders: Iterable[str | Path], *, devices: int = 1) -> list[dict[str, Any]]:
    """Seconds and peak memory of each stage, from Snakemake's benchmark files.

    Args:
        folders: each has a file <stage>.tsv or a folder <stage>/ of files per stage.
        devices: devices of a finetuning job.

    Returns:
        one dict per stage, the longest first: stage, jobs, seconds (summed over jobs), longest (seconds of the longest
        job), memory (peak over jobs, MB), share (of the seconds of all stages), device_seconds (0 for stages that
        run no model).
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
    stages["device_seconds"] = stages["seconds"].where(stages.index.isin(DEVICE_STAGES), 0.0)
    stages.loc[stages.index == "finetune_model", "device_seconds"] *= devices
    return stages.reset_index().to_dict("records")
