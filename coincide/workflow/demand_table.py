"""Tables of docs/cluster.md and docs/sizing.md: what the jobs of the paper's recipes need (`make cluster-table`)."""

import sys
from pathlib import Path

import pandas as pd
import yaml

from coincide.base.markdown import markdown_table
from coincide.base.sections import Config
from coincide.clustering.kmeans import SAMPLES_PER_CLUSTER
from coincide.models.sizes import UNKNOWN_PARAMETERS, parameters_in_name
from coincide.workflow.job_resources import (
    BYTES,
    GIB,
    GPU_SPEED,
    SAMPLE_TOKENS,
    Sizes,
    demand,
    rules_with_demand,
    training_operations,
)
from coincide.workflow.overlay import check_runs, overlaid

RECIPES = {"llava665k": 665_298, "vision_flan": 186_103}  # name -> samples
# Parameters of models whose names do not tell, from their model cards
KNOWN_PARAMETERS = {"bczhou/tiny-llava-v1-hf": 1.4e9, "openai/clip-vit-large-patch14-336": 4.3e8}
BEGIN, END = "<!-- written by make cluster-table -->", "<!-- end -->"
SIZING_RECIPE, SIZING_HIDDEN = "llava665k", 2048  # and the hidden size of its reference model
SIZING_SAMPLES = (100_000, 665_298, 4_000_000, 10_000_000)
SHARD_SAMPLES = 10_000  # of a shard in the sizing table
FRACTION = 0.2
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


def sizing_table(config: Config, hidden: int) -> str:
    """One row per dataset size: shards, clusters, disk space, and GPU-hours of extraction, k-means and training.

    Hours follow from the number of operations and the speed that the time limits of jobs assume.

    Args:
        config: of a recipe.
        hidden: hidden size of its reference model.
    """
    sizes = recipe_sizes(config)
    dimension = 2 * len(config.reference_model.layers) * hidden
    training = config.target_model.training
    speed = GPU_SPEED["bfloat16"] * 3600  # operations per hour
    rows = []
    for samples in SIZING_SAMPLES:
        clusters = samples // SAMPLES_PER_CLUSTER
        finetuning = samples * SAMPLE_TOKENS * training_operations(training) * sizes.target / speed
        rows.append(
            {
                "samples": f"{samples:,}",
                "shards": f"{-(-samples // SHARD_SAMPLES):,}",
                "clusters": f"{clusters:,}",
                "activations": f"{samples * dimension * BYTES['float16'] / GIB:,.0f} GiB",
                "extraction": f"{samples * SAMPLE_TOKENS * 2 * sizes.reference / speed:,.0f} h",
                "k-means": f"{config.clustering.iterations * 2 * samples * dimension * clusters / speed:,.1f} h",
                f"training, {FRACTION:.0%}": f"{FRACTION * finetuning:,.0f} h",
                "training, all": f"{finetuning:,.0f} h",
            }
        )
    return markdown_table(pd.DataFrame(rows))


def demand_tables(folder: str | Path) -> str:
    """The demand of every recipe."""
    return "\n".join(f"`config/{name}.yaml`:\n\n{demand_table(recipe(folder, name))}\n" for name in RECIPES)


def with_tables(text: str, tables: str) -> str:
    """The text of a page with other tables between its marks.

    Args:
        text: with the marks BEGIN and END.
        tables: the new ones.
    """
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables}\n{END}{rest.split(END)[1]}"


def tables_of_pages(folder: str | Path) -> dict[str, str]:
    """Page under docs/ -> its tables."""
    return {
        "cluster.md": demand_tables(folder),
        "sizing.md": sizing_table(recipe(folder, SIZING_RECIPE), SIZING_HIDDEN),
    }


if __name__ == "__main__":
    root = Path(sys.argv[1]).resolve()
    for name, tables in tables_of_pages(root).items():
        page = root / "docs" / name
        page.write_text(with_tables(page.read_text(), tables))
