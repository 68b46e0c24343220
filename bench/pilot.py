"""How far a pilot predicts the full run: margins over random choice on a third of a small mini-mix and on all of it.

    .venv/bin/python bench/pilot.py [--output bench/results/pilot] [--samples 2100] [--seeds 5] [--folder F] [--plan]

One start of the workflow in a folder of its own: the target pilot on a third of the samples with the reference model as
target, asked held-out samples; and the full run on all samples with the target model, asked the questions of the
mini-mix. Both compare coincide with its three kinds of budget, and self_sup, with random choice. The figure is the rank
correlation of the four margins. With a folder, what is finished there is kept.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import yaml
from common import parser, timed, write
from scipy import stats

from coincide.evaluation.results import read_answers
from coincide.study.pilot import margins, sentence

REPO = Path(__file__).resolve().parent.parent
RUN = "bench"
BUDGETS = ("even", "size")  # in addition to published


def config(samples, seeds):
    """The overlay of config.yaml: the full run with its variants, and the pilot."""
    third = samples // 3
    methods = ["coincide", "self_sup", "random"]
    return {
        "run": RUN,
        "replicates": list(range(seeds)),
        "mini_mix": {"samples": samples, "pretrain_samples": 1000, "test_samples": 40, "validation_samples": 4},
        "dataset": {"shards": 1, "leaks": "ignore", "near_duplicates": "ignore"},
        "clustering": {"k": None},
        "selection": {"methods": methods, "fractions": [0.2]},
        "target_model": {"full": False},
        "runs": [
            {"run": RUN},
            *({"run": f"{RUN}-{name}", "selection": {"budget": name, "methods": ["coincide"]}} for name in BUDGETS),
        ],
        "pilot": {
            "samples": third,
            "holdout": 0.2,
            "fraction": 0.2,
            "replicates": list(range(seeds)),
            "methods": methods,
            "variants": {name: {"selection": {"budget": name}} for name in BUDGETS},
        },
    }


def start(folder, samples, seeds, *, plan):
    """Run the pilot and the full run in a folder."""
    for name in ("Snakefile", "rules", "workflow_scripts", "config", "config.yaml", "docs", "envs", "profiles"):
        if not (folder / name).exists():
            (folder / name).symlink_to(REPO / name)
    (folder / "bench.yaml").write_text(yaml.safe_dump(config(samples, seeds)))
    snakemake = Path(sys.executable).parent / "snakemake"
    targets = ["pilot", *(str(path) for path in summary_paths(seeds))]
    options = ["--profile", "profiles/local", "--configfile", "bench.yaml", *["--dry-run"] * plan]
    subprocess.run([snakemake, *targets, *options], cwd=folder, check=True)


def summary_paths(seeds):
    """Summary of each run on all samples -> (variant, replicate)."""
    return {
        Path(f"results/{RUN}{variant and f'-{variant}'}-{seed}/summary.parquet"): (variant, seed)
        for variant in ("", *BUDGETS)
        for seed in range(seeds)
    }


def full_margins(folder, seeds):
    """Margins over random choice of the runs on all samples."""
    answers = []
    for path, (variant, seed) in summary_paths(seeds).items():
        for results in (folder / path.parent).glob("evaluations/*/*/*/*/*/results.json"):
            method = results.parts[-5]
            if method != "full":
                label = f"{method} ({variant})" if variant else method
                answers.append(read_answers(results).assign(method=label, replicate=seed))
    return margins(pd.concat(answers, ignore_index=True))


def main():
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--samples", type=int, default=2100)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    arguments.add_argument("--plan", action="store_true", help="only list the jobs")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        seconds, _ = timed(start, folder, options.samples, options.seeds, plan=options.plan)
        if options.plan:
            return
        pilot = pd.read_csv(folder / f"results/{RUN}-pilot/pilot.csv")
        full = full_margins(folder, options.seeds)
    table = pilot.merge(full, on="method", suffixes=("_pilot", "_full"))
    rho = float(stats.spearmanr(table["margin_pilot"], table["margin_full"]).statistic)
    columns = [
        "method",
        *(f"{name}_{run}" for run in ("pilot", "full") for name in ("margin", "low", "high", "p")),
    ]
    print(table[columns].to_string(index=False))
    print(f"pilot: {sentence(pilot)}\nfull: {sentence(full)}")
    print(f"rank correlation of {len(table)} margins: {rho:.2f}; {seconds:.0f} seconds")
    rows = table[columns].to_dict("records")
    write(options.output, None, samples=options.samples, seeds=options.seeds, rank_correlation=rho, margins=rows)


if __name__ == "__main__":
    main()
