"""From a dataset in any supported format to the manifest of usable samples and the shards."""
