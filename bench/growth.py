"""What a run over a grown dataset computes and reuses, and which coresets it selects.

    .venv/bin/python bench/growth.py [--samples 3000] [--output bench/results/growth]

The workflow selects from the first 60% of the demo's mix (run first), then from all of it: from scratch, with another
seed from scratch, and in runs that extend first, with its centroids and with clusters found anew, each with the three
ways to set budgets. Reported are the samples that the reference model reads, the processor time of the extraction jobs,
and the overlap of each coreset of coincide with the one from scratch: the share of its samples that both have. Last,
each source in turn is left out of the first batch, to see which share of its samples fits the centroids badly.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from common import parser, timed, write

from coincide import spherical_kmeans
from coincide.base.activation_store import Activations
from coincide.base.markdown import markdown_table
from coincide.clustering.fit import centroid_fit
from coincide.clustering.kmeans import assign, clusters_table
from coincide.reporting.growth import count_samples

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from conftest import Workplace

PART = 0.6
MIX = "resources/mini-mix"
BUDGETS = {
    "all, picked anew": {},
    "all, earlier picks kept": {"keep_earlier": True},
    "new only, earlier picks kept": {"keep_earlier": True, "fraction_of": "new"},
}
WAYS = {"anew": {}, "frozen": {"centroids": "results/first/centroids.parquet"}}


def config_of(samples, annotations, **changes):
    """A config of the demo's models on a smaller mix."""
    return {
        "dataset": {"annotations": annotations, "images": f"{MIX}/images", "shards": 1, "leaks": "ignore"},
        "mini_mix": {"samples": samples, "pretrain_samples": 1200, "test_samples": 4, "validation_samples": 4},
        # one cluster per 66 samples, as in the paper; the demo's number is for its own size
        "clustering": {"k": None},
        "selection": {"methods": ["coincide"]},
        **changes,
    }


def snakemake(workplace, target, config):
    """Run the workflow; returns what it printed."""
    path = workplace / "bench.yaml"
    path.write_text(yaml.safe_dump(config))
    seconds, (code, output) = timed(workplace.run, target, config=path, timeout=3600)
    if code:
        raise SystemExit(output)
    print(f"{target}: {seconds:.0f} s", file=sys.stderr)
    return output


def ids(workplace, run, name="coresets/coincide/0.2/coreset.parquet"):
    """Sample ids in a table of a run."""
    return pd.read_parquet(workplace / f"results/{run}/{name}", columns=["sample_id"])["sample_id"]


def extraction(workplace, run, old):
    """Samples of a run's extraction, and processor seconds of its job."""
    benchmark = pd.read_csv(workplace / f"results/{run}/benchmarks/activations/00000.tsv", sep="\t")
    folder = workplace / f"results/{run}"
    metadata = Activations(folder / "activations.parquet").metadata
    counts = count_samples(ids(workplace, run, "manifest.parquet"), old, metadata)
    reused = counts.get("reused", 0)
    return {
        "samples": counts["all"],
        "reused": reused,
        "read": counts["all"] - reused,
        "cpu_seconds": float(benchmark["cpu_time"].iloc[0]),
        "seconds": float(benchmark["s"].iloc[0]),
    }


def coreset_row(workplace, run, old, scratch):
    """Make-up of a coreset, and its overlap with the one from scratch."""
    coreset, earlier = ids(workplace, run), set(ids(workplace, "first"))
    return {
        "samples": len(coreset),
        "of the earlier coreset": int(coreset.isin(earlier).sum()),
        "new": int((~coreset.isin(old)).sum()),
        "overlap": float(coreset.isin(scratch).mean()),
    }


def poor_fits(workplace):
    """Share of the new samples that fit badly, of each source if the first batch lacks it, and of the others."""
    sources = pd.read_parquet(workplace / "results/scratch/manifest.parquet", columns=["source"])["source"]
    return {"alike": poor_fit(workplace, None)} | {
        source: poor_fit(workplace, source) for source in sorted(sources.unique())
    }


def poor_fit(workplace, left_out):
    """Share of new samples that fit badly the centroids of a first batch without a source: (the source, the others)."""
    manifest = pd.read_parquet(workplace / "results/scratch/manifest.parquet", columns=["sample_id", "source"])
    activations = Activations(workplace / "results/scratch/activations.parquet")
    is_old = manifest["sample_id"].isin(ids(workplace, "first", "manifest.parquet"))
    is_old &= manifest["source"] != left_out
    rows = np.asarray(activations.rows(np.flatnonzero(is_old)))
    clustering = spherical_kmeans(rows, max(1, round(len(rows) / 66)))
    earlier = clusters_table(manifest.loc[is_old, "sample_id"].to_numpy(), clustering)
    clusters = clusters_table(activations.sample_ids, assign(activations, clustering.centroids))
    fit = centroid_fit(earlier, clusters, manifest, quantile=0.01)
    is_left_out = fit["source"] == left_out
    return {
        name: {"new": int(group["new"].sum()), "badly": float(group["badly"].sum() / group["new"].sum())}
        for name, group in (("the source", fit[is_left_out]), ("the others", fit[~is_left_out]))
        if len(group)
    }


def main():
    """Run the benchmark: print the tables and write results."""
    arguments = parser(__doc__)
    arguments.add_argument("--samples", type=int, default=3000)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workplace = Workplace(Path(folder))
        size = options.samples
        snakemake(workplace, f"{MIX}/train.json", config_of(size, f"{MIX}/train.json"))
        records = json.loads((workplace / f"{MIX}/train.json").read_text())
        (workplace / "first.json").write_text(json.dumps(records[: round(PART * len(records))]))
        (workplace / "all.json").write_text(json.dumps(records))
        snakemake(workplace, "select", config_of(size, "first.json", run="first"))
        # two seeds from scratch share their extraction; the runs that extend `first` share theirs
        scratch = [{"run": "scratch"}, {"run": "seed-1", "clustering": {"seed": 1}, "selection": {"seed": 1}}]
        snakemake(workplace, "select", config_of(size, "all.json", runs=scratch))
        extended = [
            {
                "run": f"{way}-{number}",
                "dataset": {"extends": "results/first"},
                "clustering": clustering,
                "selection": selection,
            }
            for way, clustering in WAYS.items()
            for number, selection in enumerate(BUDGETS.values())
        ]
        snakemake(workplace, "select", config_of(size, "all.json", runs=extended))
        old = ids(workplace, "first", "manifest.parquet")
        extractions = [
            {"run": name, **extraction(workplace, run, old)}
            for name, run in (("first", "first"), ("from scratch", "scratch"), ("extended", "anew-0"))
        ]
        reference = set(ids(workplace, "scratch"))
        coresets = [
            {"clusters": way, "budget": budget, **coreset_row(workplace, f"{way}-{number}", old, reference)}
            for way in WAYS
            for number, budget in enumerate(BUDGETS)
        ]
        other_seed = coreset_row(workplace, "seed-1", old, reference)
        coresets.append({"clusters": "from scratch, other seed", "budget": "all, picked anew", **other_seed})
        paths = [workplace / f"results/{run}/coresets/coincide/0.2/coreset.parquet" for run in ("anew-0", "scratch")]
        identical = paths[0].read_bytes() == paths[1].read_bytes()
        fits = poor_fits(workplace)
    print(markdown_table(pd.DataFrame(extractions)))
    print(markdown_table(pd.DataFrame(coresets).assign(overlap=lambda table: table["overlap"].map("{:.0%}".format))))
    print("anew, all, picked anew: the same bytes as from scratch:", identical)
    print(pd.json_normalize([{"left out": name, **fit} for name, fit in fits.items()]).to_string())
    write(
        options.output, None, samples=options.samples, part=PART, extraction=extractions, coresets=coresets,
        anew_is_identical=identical, poor_fit=fits,
    )  # fmt: skip


if __name__ == "__main__":
    main()
