"""Made-up results of a run for the tests of the report: hostile text, several methods and fractions."""

import json

import numpy as np
import pandas as pd
from PIL import Image

from coincide.base.activation_store import Activations, write_activations
from coincide.dataset.duplicates import DUPLICATE_COLUMNS
from coincide.dataset.formats import open_dataset
from coincide.dataset.samples import Reason, RejectedSample, rejected_table
from coincide.evaluation.leaks import EXAMPLE_COLUMNS, LEAK_COLUMNS, TASK_COLUMNS
from coincide.reporting.growth import CORESET_COLUMNS, RunGrowth, growth_section
from coincide.reporting.leaks import report_section
from coincide.reporting.report import RunResults
from coincide.reporting.run_warnings import run_warnings
from coincide.reporting.summary import relative_performance
from coincide.reporting.visual_necessity import VisualNecessity

SCRIPT = "<script>window.broken = 1</script>"
HOSTILE = f"""{SCRIPT}<img src=x onerror="window.broken = 1"> "quotes" 'and' </script> & &lt;b&gt;"""
SOURCES = ["charts", "signs & <b>shops</b>", "digits", "text only", SCRIPT, "a-name-without-any-space-" * 4]
METHODS = ["coincide", "random", "el2n"]


def build_run(
    folder,
    *,
    samples=300,
    k=12,
    hidden=4,
    images=40,
    pixels=24,
    fractions=("0.2", "0.1"),
    seeds=3,
    tasks=("gqa", "vqa", "unlearned"),
    methods=METHODS,
    rejected=2,
    full=True,
):
    """Write the dataset and the activations of a run to a folder, and return its RunResults."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(images):
        array = rng.integers(0, 256, (pixels // 8 + 1, pixels // 8 + 1, 3), dtype=np.uint8)
        Image.fromarray(array).resize((pixels, pixels)).save(folder / f"{i}.png")
    records = []
    for i in range(samples):
        text = HOSTILE if i < 40 else f"What is in picture {i}, and how many are there? " * 3
        image = {"image": f"{i % images}.png"} if i % 3 else {}
        mark = "<image>\n" if image else ""
        turns = [{"from": "human", "value": mark + text}, {"from": "gpt", "value": f"answer {text}"}]
        records.append({"id": f"s{i}{HOSTILE if i < 5 else ''}", "conversations": turns, **image})
    (folder / "data.json").write_text(json.dumps(records))
    labels = np.sort(rng.integers(0, k, samples))
    labels[:k] = np.arange(k)  # no cluster is empty
    manifest = pd.DataFrame(
        {
            "sample_id": [record["id"] for record in records],
            "source": [SOURCES[label % len(SOURCES)] for label in labels],
            "position": np.arange(samples),
        }
    )
    centroids = rng.normal(size=(k, 4 * hidden)).astype(np.float32)
    rows = centroids[labels] + 0.3 * rng.normal(size=(samples, 4 * hidden)).astype(np.float32)
    write_activations(
        folder / "activations.parquet",
        [(manifest["sample_id"].tolist(), rows.astype(np.float16))],
        dimension=4 * hidden,
        metadata={"hidden_size": hidden, "layers": [1, 3], "model": "reference", "weights": "abc"},
    )
    sizes = np.bincount(labels, minlength=k)
    shares = rng.dirichlet(np.full(k, 0.3))
    stats = pd.DataFrame(
        {
            "cluster": range(k),
            "size": sizes,
            "transferability": rng.uniform(0.2, 0.6, k),
            "density": rng.uniform(0.7, 1, k),
            "logit": np.log(shares + 1e-30),
            "share": shares,
        }
    )
    coresets = {}
    for method in methods:
        for fraction in fractions:
            chosen = rng.permutation(samples)[: int(float(fraction) * samples)]
            coresets[method, fraction] = pd.DataFrame({"sample_id": manifest["sample_id"].to_numpy()[chosen]})
            stats[f"budget_{fraction}"] = np.bincount(labels[chosen], minlength=k)
    if full:
        coresets["full", "1"] = manifest[["sample_id"]]
    scores = pd.DataFrame(
        [
            {
                "target": "target", "method": method, "fraction": float(fraction), "seed": seed, "task": task,
                "metric": "exact_match", "higher_is_better": True,
                "score": 0.0 if task == "unlearned" else quality + 0.01 * seed + 0.02 * i,
            }
            for method, fraction, quality in [
                *((m, f, {"coincide": 0.78, "random": 0.7}.get(m, 0.6) - 0.2 * (f == "0.1"))
                  for m in methods for f in fractions),
                *([("full", "1", 0.8)] if full else []),
            ]
            for seed in range(seeds)
            for i, task in enumerate(tasks)
        ]
    )  # fmt: skip
    benchmarks = folder / "benchmarks"
    times = {"activations/00000": 30, "merge": 2, "clusters": 5, "transferability": 1, "shares": 1, "summary": 1}
    for method, fraction in coresets:
        for seed in range(seeds):
            times[f"finetune_model/target-{method}-{fraction}-{seed}"] = 400 * float(fraction)
    for name, seconds in times.items():
        (benchmarks / f"{name}.tsv").parent.mkdir(parents=True, exist_ok=True)
        (benchmarks / f"{name}.tsv").write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:02\t120\n")
    summary = relative_performance(scores)
    rejections = rejected_table(
        [RejectedSample(SCRIPT, samples + i, Reason.MISSING_IMAGE, HOSTILE) for i in range(rejected)]
    )
    return RunResults(
        settings={"run": "x<y", "selection": {"blocks": "text", "exclude_above": 0.9}, "evaluation": {}},
        summary=summary,
        manifest=manifest,
        rejected=rejections,
        clusters=pd.DataFrame(
            {"sample_id": manifest["sample_id"], "cluster": labels, "similarity": rng.uniform(0.5, 1, samples)}
        ),
        cluster_stats=stats,
        centroids=centroids,
        activations=Activations(folder / "activations.parquet"),
        coresets=coresets,
        dataset=open_dataset(folder / "data.json"),
        images=folder,
        warnings=run_warnings(
            summary=summary, manifest=manifest, rejected=rejections, cluster_stats=stats, coresets=coresets,
            learned_above=0.0, failures=[f"Warning: a task failed: {HOSTILE}"],
        ),
        held_out=3,
        benchmarks=[benchmarks],
        all_benchmarks=[benchmarks],
        shared={SCRIPT: ["manifest"]},
        provenance={"Models": [("reference_model", HOSTILE)]},
        commands="git checkout abc",
        links={"Browse the clusters": "browser/index.html"},
        constraints=pd.DataFrame([{"constraint": f"at least, {SCRIPT}", "asked": 1234, "coincide": 1300}]),
        necessity=VisualNecessity(
            sources=pd.DataFrame(
                {"source": [HOSTILE], "samples": [8], "not_needed": [3], "worse": [1], "mean": [0.25]}
            ),
            examples=pd.DataFrame(
                {"kind": ["worse"], "source": [HOSTILE], "sample_id": [HOSTILE], "visual_necessity": [-0.75],
                 "question": [HOSTILE], "answer": [HOSTILE]}
            ),
            text_only=4321,
        ),
        screening=_screening(HOSTILE),
        growth=growth_section(
            RunGrowth(
                HOSTILE, {"all": 20, "new": 10, "gone": 1, "reused": 9, "changed": 1},
                coresets=pd.DataFrame([[HOSTILE, 4, 2, 0, 2]], columns=CORESET_COLUMNS),
                centroids=HOSTILE, fit=pd.DataFrame({"source": [HOSTILE], "new": [10], "badly": [6]}),
            )
        ),
    )  # fmt: skip


def _screening(text):
    """The section about leaks and near-duplicates, with a text wherever the dataset and the tasks have one."""
    pairs = pd.DataFrame([(text, 3, text, text, text, "same picture", 4, True, False, 1)], columns=list(LEAK_COLUMNS))
    tasks = pd.DataFrame([(text, 9, 9, 1, False, text)], columns=list(TASK_COLUMNS))
    example = (text, 3, text, "same picture", 4, True, text, text, b"", None)
    duplicates = pd.DataFrame([(text, text, text, text, "same pixels", 0, text)], columns=list(DUPLICATE_COLUMNS))
    return report_section(
        pairs=pairs,
        tasks=tasks,
        examples=pd.DataFrame([example], columns=list(EXAMPLE_COLUMNS)),
        duplicates=duplicates,
        manifest=pd.DataFrame({"source": [text] * 2}),
        leaks_mode="report",
        duplicates_mode="drop",
    )
