"""From a dataset in any format to the manifest of usable samples and the shards."""
