"""Density and picks of many clusters at a time on a device, in float64: the numbers of `kernel` and `picks`."""

import numpy as np
import torch

from coincide.base.progress import Progress
from coincide.base.rows import ahead, take_members
from coincide.selection.kernel import ClusterKernel
from coincide.selection.picks import TIE, greedy_picks

BYTES = 2**32  # of rows and kernels held at once; a cluster above it is worked on by the CPU


def densities_on(device, x, members, *, gamma):
    """Mean kernel of clusters: (m,) float64, NaN for an empty one; see `coincide.selection.density.density`.

    Args:
        device: torch device.
        x: `Rows`.
        members: list of m arrays of row positions.
        gamma: kernel width γ.
    """
    result = np.full(len(members), np.nan)

    def of_batch(numbers, kernel, count):
        result[numbers] = (kernel.sum(dim=(1, 2)) / count**2).cpu().numpy()

    def alone(number, rows):
        result[number] = ClusterKernel(rows, gamma=gamma).means().mean()

    _each(device, x, members, gamma, of_batch, alone, "density")
    return result


def picks_on(device, x, members, budgets, *, gamma):
    """Greedy MMD picks of clusters: list of arrays of positions in `members`; see `coincide.selection.picks`."""
    result = [np.empty(0, np.int64)] * len(members)

    def of_batch(numbers, kernel, count):
        wanted = [int(budgets[i]) for i in numbers]
        picked = greedy_batch(kernel, count, max(wanted)).cpu().numpy()
        for i, row, m in zip(numbers, picked, wanted):
            result[i] = row[:m]

    def alone(number, rows):
        result[number] = greedy_picks(ClusterKernel(rows, gamma=gamma), int(budgets[number]))

    _each(device, x, members, gamma, of_batch, alone, "picks")
    return result


def greedy_batch(kernel, count, m):
    """Picks of several clusters side by side.

    Args:
        kernel: (b, n, n) float64 kernels, 0 beyond a cluster's members.
        count: (b,) numbers of members.
        m: number of picks; of a cluster with fewer members the rest says nothing.

    Returns:
        (b, m) int64.
    """
    b, n, _ = kernel.shape
    places, every = torch.arange(n, device=kernel.device), torch.arange(b, device=kernel.device)
    to_cluster = kernel.sum(dim=2) / count[:, None]
    taken = places >= count[:, None]
    to_picks, within, across = torch.zeros_like(to_cluster), torch.zeros_like(count), torch.zeros_like(count)
    picks = torch.empty((b, m), dtype=torch.int64, device=kernel.device)
    for i in range(m):
        value = (within[:, None] + 2 * to_picks + 1) / (i + 1) ** 2 - 2 * (across[:, None] + to_cluster) / (i + 1)
        value = value.masked_fill(taken, torch.inf)
        ties = value <= value.min(dim=1, keepdim=True).values + TIE
        pick = torch.where(ties, places, n).min(dim=1).values
        within = within + 2 * to_picks[every, pick] + 1
        across = across + to_cluster[every, pick]
        taken[every, pick] = True
        to_picks = to_picks + kernel[every, pick]
        picks[:, i] = pick
    return picks


def kernels(rows, places, count, *, gamma):
    """(b, n, n) float64 Gaussian kernels of b clusters; see `coincide.selection.kernel.gaussian_kernel`.

    Args:
        rows: (m, d) rows on a device.
        places: (b, n) rows of each cluster's members; beyond them anything.
        count: (b,) float64, numbers of members.
        gamma: kernel width γ.
    """
    inside = torch.arange(places.shape[1], device=rows.device) < count[:, None]
    x = rows[places].double() * inside[..., None]
    x -= (x.sum(dim=1) / count[:, None])[:, None]
    norms = x.square().sum(dim=2)
    squared = torch.baddbmm(norms[:, :, None] + norms[:, None], x, x.mT, alpha=-2).clamp_(min=0)
    squared.diagonal(dim1=1, dim2=2).zero_()
    kernel = squared.mul_(-0.5 / gamma**2).exp_()
    return kernel * (inside[:, :, None] & inside[:, None])


def _each(device, x, members, gamma, of_batch, alone, what):
    """Call of_batch(numbers, kernel, count) for batches of clusters of like size, or alone(number, rows)."""
    progress = Progress(len(members), what, unit="clusters")
    sizes = np.array([len(m) for m in members], np.int64)
    order = [int(i) for i in np.argsort(-sizes, kind="stable") if sizes[i]]
    progress.update(len(members) - len(order))

    def read(numbers):
        return numbers, *take_members(x, [members[i] for i in numbers])

    for numbers, rows, places in ahead(map(read, _batches(order, sizes, x.shape[1]))):
        if _bytes(sizes[numbers[0]], x.shape[1]) > BYTES:
            alone(numbers[0], rows[places[0]])
        else:
            padded = np.zeros((len(numbers), sizes[numbers[0]]), np.int64)
            for row, own in zip(padded, places):
                row[: len(own)] = own
            count = torch.tensor(sizes[numbers], dtype=torch.float64, device=device)
            on_device = torch.from_numpy(np.ascontiguousarray(rows)).to(device)
            of_batch(numbers, kernels(on_device, torch.from_numpy(padded).to(device), count, gamma=gamma), count)
        progress.update(len(numbers))
    progress.close()


def _bytes(n, d):
    return int(n) * (int(n) + d) * 3 * 8


def _batches(order, sizes, d):
    """Lists of clusters, the largest first, whose padded rows and kernels stay within BYTES."""
    batch = []
    for i in order:
        if batch and (len(batch) + 1) * _bytes(sizes[batch[0]], d) > BYTES:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
