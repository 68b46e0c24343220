"""Activations of the reference model, one job per shard, and their merge."""
