"""How far a pilot predicts the full run: margins over random choice of all methods in both.

    .venv/bin/python bench/pilot.py [--model reference|target] [--output bench/results/pilot-reference] [--folder F]

One start of the workflow in a folder of its own: the comparison of config/study-small.yaml, which finetunes the target
model on coresets of the whole mini-mix and asks the questions of its evaluation, and the pilot of the same config,
which finetunes the reference model (or the target model) on coresets of a third of the samples and asks held-out ones.
Both have three replicates. The figure is the rank correlation of the margins that both have measured at the pilot's
fraction. With a folder, what is finished there is kept: after the study, only the pilot is missing. --plan lists the
jobs.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from common import link_workflow, parser, timed, write
from scipy import stats

from coincide.evaluation.results import read_answers
from coincide.study.pilot import margins, sentence

RUN = "study-small"
VARIANTS = {RUN: "", "even": "even"}  # runs of the study whose settings the pilot has, too -> name there
SEEDS, FRACTION = (0, 1, 2), "0.2"


def start(folder, model, *, plan):
    """Run the study and the pilot of a model in a folder."""
    link_workflow(folder)
    snakemake = Path(sys.executable).parent / "snakemake"
    options = ["--profile", "profiles/local", "--configfile", f"config/{RUN}.yaml", *["--dry-run"] * plan]
    settings = ["--config", f"pilot={{replicates: {list(SEEDS)}, model: {model}}}"]
    subprocess.run([snakemake, "comparison", "pilot", *options, *settings], cwd=folder, check=True)


def study_margins(folder):
    """Margins over random choice of the coresets of the whole dataset."""
    answers = []
    for run, name in VARIANTS.items():
        for seed in SEEDS:
            found = sorted(folder.glob(f"results/{run}-{seed}/evaluations/*/*/{FRACTION}/*/*/results.json"))
            if not found:
                sys.exit(f"{folder}/results/{run}-{seed} has no evaluations")
            for results in found:
                method = results.parts[-5]
                label = f"{method} ({name})" if name else method
                answers.append(read_answers(results).assign(method=label, replicate=seed))
    return margins(pd.concat(answers, ignore_index=True))


def main():
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", choices=["reference", "target"], default="reference", help="which one is trained")
    arguments.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    arguments.add_argument("--plan", action="store_true", help="only list the jobs")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        seconds, _ = timed(start, folder, options.model, plan=options.plan)
        if options.plan:
            return
        pilot = pd.read_csv(folder / f"results/{RUN}-pilot/pilot.csv")
        full = study_margins(folder)
    table = pilot.merge(full, on="method", suffixes=("_pilot", "_full"))
    rho, p = stats.spearmanr(table["margin_pilot"], table["margin_full"])
    columns = [
        "method",
        *(f"{name}_{run}" for run in ("pilot", "full") for name in ("margin", "low", "high", "p")),
    ]
    print(table[columns].to_string(index=False))
    print(f"pilot: {sentence(pilot)}\nfull: {sentence(full)}")
    print(f"rank correlation of {len(table)} margins: {rho:.2f} (p = {p:.2f}); {seconds:.0f} seconds")
    rows = table[columns].to_dict("records")
    result = {"model": options.model, "replicates": len(SEEDS), "rank_correlation": float(rho), "p": float(p)}
    write(options.output, None, **result, margins=rows)


if __name__ == "__main__":
    main()
