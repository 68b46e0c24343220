"""Activations of the reference model, one job per shard, and their merge; sample metrics and CLIP scores."""
