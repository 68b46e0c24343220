"""Sort the dataset's rows into usable samples (manifest) and samples set aside (rejected)."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.manifest import build_manifest, check_rejected, read_records
from coincide.tables import write_table

records = read_records(snakemake.input.annotations)
manifest, rejected = build_manifest(
    records,
    snakemake.input.images,
    shards=snakemake.params.shards,
    clusters=snakemake.config[snakemake.wildcards.run]["clustering"][
        "k"
    ],  # looked at early, but the manifest does not depend on it
    duplicate_ids=snakemake.params.duplicate_ids,
    decode_images=snakemake.params.decode_images,
    threads=snakemake.threads,
)
write_table(rejected, snakemake.output.rejected)
check_rejected(rejected, len(records), snakemake.params.max_rejected)
write_table(manifest, snakemake.output.manifest)
