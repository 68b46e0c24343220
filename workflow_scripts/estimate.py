"""Estimate what extraction, finetuning and evaluation will take, from the manifest and a short measured sample."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.activations import loader_workers, open_extractor
from coincide.datasets import open_dataset, to_llava
from coincide.estimate import as_text, count_parameters, count_questions, estimate, measure, sample_rows
from coincide.files import replacing
from coincide.methods import needs

settings = snakemake.config[snakemake.wildcards.run]
reference, target, training = (
    settings["reference_model"],
    settings["target_model"],
    settings["target_model"]["training"],
)
manifest = pd.read_parquet(snakemake.input.manifest)
rows = sample_rows(manifest, snakemake.params.samples)
chosen = manifest.iloc[rows].sort_values("position")
records = dict(
    zip(
        chosen["position"], map(to_llava, open_dataset(snakemake.input.annotations).pick(chosen["position"].to_numpy()))
    )
)
samples = [
    {"sample_id": row.sample_id, "position": row.position, "record": records[row.position]}
    for row in manifest.iloc[rows].itertuples()
]
extractor, encoder, dimension = open_extractor(
    reference["name"],
    snakemake.input.images,
    samples,
    **{
        k: reference[k]
        for k in (
            "revision",
            "trust_remote_code",
            "dtype",
            "attention",
            "device",
            "layers",
            "batch_tokens",
            "max_tokens",
            "scores",
        )
    },
)
measured = measure(extractor, encoder, samples, workers=loader_workers(extractor.model.device.type))
stages = estimate(
    manifest,
    measured,
    rows,
    dimension=dimension,
    shards=settings["dataset"]["shards"],
    fractions=[float(fraction) for _, fraction in snakemake.params.selections],
    seeds=len(target["seeds"]),
    epochs=training["epochs"],
    training=training,
    target_parameters=count_parameters(
        target["name"], revision=target["revision"], trust_remote_code=target["trust_remote_code"]
    ),
    questions=count_questions(snakemake.params.tasks, settings["evaluation"]["include_path"]),
    difficulty=any("difficulty" in needs(method) for method, _ in snakemake.params.selections),
)
with replacing(snakemake.output[0]) as part:
    part.write_text(as_text(stages, measured, extractor.model.device, len(manifest)))
