"""What the jobs of the paper's recipes ask of a cluster, as the tables of docs/cluster.md (`make cluster-table`)."""

import sys
from pathlib import Path

import pandas as pd
import yaml

from coincide.base.markdown import markdown_table
from coincide.base.sections import Config
from coincide.models.sizes import UNKNOWN_PARAMETERS, parameters_in_name
from coincide.workflow.job_resources import Sizes, demand, rules_with_demand
from coincide.workflow.overlay import check_runs, overlaid

RECIPES = {"llava665k": 665_298, "vision_flan": 186_103, "qwen2_5_vl": 665_298}  # name -> samples
# Parameters of models whose names do not tell, from their model cards
KNOWN_PARAMETERS = {"openai/clip-vit-large-patch14-336": 4.3e8}
BEGIN, END = "<!-- written by make cluster-table -->", "<!-- end -->"
OTHER_RULES = ("tiny_model", "preflight")  # of the demo; run where Snakemake runs


def recipe(folder: str | Path, name: str) -> Config:
    """The config of a recipe.

    Args:
        folder: of the workflow.
        name: of the recipe.
    """
    folder = Path(folder)
    common = yaml.safe_load((folder / "config.yaml").read_text())
    changes = yaml.safe_load((folder / f"config/{name}.yaml").read_text())
    return next(iter(check_runs(overlaid(common, changes), files=False).values()))


def recipe_sizes(config: Config) -> Sizes:
    """Sizes of the models of a recipe from their names, the same on every machine."""
    names = (config.reference_model.name, config.target_model.name, config.clip_model.name)
    parameters = [KNOWN_PARAMETERS.get(name) or parameters_in_name(name) or UNKNOWN_PARAMETERS for name in names]
    reference, target, clip = parameters
    return Sizes(reference, target, clip, RECIPES[config.run])


def demand_table(config: Config) -> str:
    """One row per rule, and for finetuning one per fraction: GPUs, nodes, CPUs, memory and time of a job."""
    rows = []
    for rule in rules_with_demand():
        if rule in OTHER_RULES:
            continue
        for fraction in [*config.selection.fractions, 1.0] if rule == "finetune_model" else [1.0]:
            need = demand(config, rule, recipe_sizes(config), fraction=fraction)
            rows.append(
                {
                    "rule": f"`{rule}`" + (f" ({fraction:.1%} of the data)" if rule == "finetune_model" else ""),
                    "GPUs": need.gpus,
                    "nodes": need.nodes,
                    "CPUs per node": need.cpus,
                    "memory per node": f"{need.memory:,.0f} GiB",
                    "time": f"{need.minutes / 60:,.1f} h",
                }
            )
    rows.append({"rule": "all others", **_row_of_small_jobs(config)})
    return markdown_table(pd.DataFrame(rows))


def _row_of_small_jobs(config):
    need = demand(config, "shares", recipe_sizes(config))
    hours = f"{need.minutes / 60:,.1f} h"
    return {
        "GPUs": need.gpus, "nodes": need.nodes, "CPUs per node": need.cpus,
        "memory per node": f"{need.memory:,.0f} GiB", "time": hours,
    }  # fmt: skip


def with_tables(text: str, folder: str | Path) -> str:
    """The text of docs/cluster.md with current tables between its marks.

    Args:
        text: with the marks BEGIN and END.
        folder: of the workflow.
    """
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    tables = [f"`config/{name}.yaml`:\n\n{demand_table(recipe(folder, name))}\n" for name in RECIPES]
    return f"{before}{BEGIN}\n\n" + "\n".join(tables) + f"\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_tables(page.read_text(), page.resolve().parent.parent))
