"""Uniformly at random, without replacement."""

import numpy as np

NEEDS = ()


def picks(tables, count, *, seed):
    """The rows with the smallest draws."""
    draws = np.random.default_rng(seed).random(len(tables.clusters))
    return np.argsort(draws, kind="stable")[:count], draws
