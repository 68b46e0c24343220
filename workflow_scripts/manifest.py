"""Sort the dataset's rows into usable samples (manifest) and samples set aside (rejected)."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.datasets import open_dataset
from coincide.manifest import build_manifest, check_rejected
from coincide.tables import write_table

# k is looked at early, but the manifest does not depend on it
clusters = snakemake.config[snakemake.wildcards.run]["clustering"]["k"]
manifest, rejected = build_manifest(
    open_dataset(snakemake.input.annotations),
    snakemake.input.images,
    shards=snakemake.params.shards,
    clusters=clusters,
    duplicate_ids=snakemake.params.duplicate_ids,
    decode_images=snakemake.params.decode_images,
    threads=snakemake.threads,
)
write_table(rejected, snakemake.output.rejected)
check_rejected(rejected, len(manifest) + len(rejected), snakemake.params.max_rejected)
write_table(manifest, snakemake.output.manifest)
