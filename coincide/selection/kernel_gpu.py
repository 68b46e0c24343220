"""Kernels and picks of many clusters at once on a device, in float64: the same numbers as `kernel` and `picks`."""

import numpy as np
import torch
from numpy.typing import NDArray

BATCH_BYTES = 2**32  # memory for the rows and kernels of a batch; a larger cluster is processed on the CPU


def cluster_bytes(n_members: int, dimension: int) -> int:
    """Bytes that a cluster takes in a batch: its rows and its kernel in float64, with temporaries."""
    return n_members * (n_members + dimension) * 3 * 8


def batch_kernels(
    rows: NDArray, positions: list[NDArray], *, device: str, gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian kernels of b clusters; see `coincide.selection.kernel.gaussian_kernel`.

    Args:
        rows: (m, d) rows of all members.
        positions: list of b arrays: positions in `rows` of each cluster's members.
        device: torch device.
        gamma: kernel width γ.

    Returns:
        ((b, n, n) float64 kernels on the device, n being the size of the largest cluster, 0 beyond a
        cluster's members; (b,) float64 sizes).
    """
    members = np.zeros((len(positions), max(map(len, positions))), np.int64)  # padded with row 0
    for padded, cluster_positions in zip(members, positions):
        padded[: len(cluster_positions)] = cluster_positions
    sizes = torch.tensor([len(p) for p in positions], dtype=torch.float64, device=device)
    is_member = torch.arange(members.shape[1], device=device) < sizes[:, None]
    x = torch.from_numpy(np.ascontiguousarray(rows)).to(device)[torch.from_numpy(members).to(device)]
    x = x.double() * is_member[..., None]
    x -= (x.sum(dim=1) / sizes[:, None])[:, None]
    norms = x.square().sum(dim=2)
    squared = torch.baddbmm(norms[:, :, None] + norms[:, None], x, x.mT, alpha=-2).clamp_(min=0)
    squared.diagonal(dim1=1, dim2=2).zero_()
    kernels = squared.mul_(-0.5 / gamma**2).exp_()
    return kernels * (is_member[:, :, None] & is_member[:, None]), sizes


def greedy_batch(
    kernels: torch.Tensor,
    sizes: torch.Tensor,
    m: int,
    *,
    tie: float,
    first: NDArray[np.int64],
    excluded: NDArray[np.bool_],
) -> torch.Tensor:
    """Greedy MMD picks of b clusters; see `coincide.selection.picks.greedy_mmd`.

    Args:
        kernels: (b, n, n) float64 kernels, 0 beyond a cluster's members.
        sizes: (b,) numbers of members.
        m: number of picks. In a cluster with fewer members, the picks after the last member are invalid.
        tie: candidates whose MMD² differs by less than this are ties.
        first: (b, m) members that are picked in any case; -1: the best one.
        excluded: (b, n) members that are not picked.

    Returns:
        (b, m) int64 positions of members, in the order picked.
    """
    b, n, _ = kernels.shape
    candidates, batch = torch.arange(n, device=kernels.device), torch.arange(b, device=kernels.device)
    picked = (candidates >= sizes[:, None]) | torch.from_numpy(excluded).to(kernels.device)
    forced = torch.from_numpy(first).to(kernels.device)
    to_cluster = kernels.sum(dim=2) / sizes[:, None]  # mean kernel of each member with the cluster
    to_picks = torch.zeros_like(to_cluster)  # summed kernel of each member with the picks
    among_picks, picks_to_cluster = torch.zeros_like(sizes), torch.zeros_like(sizes)
    picks = torch.empty((b, m), dtype=torch.int64, device=kernels.device)
    for i in range(m):
        size = i + 1
        # MMD² with each candidate added, minus the constant term of the cluster
        mmd = (among_picks[:, None] + 2 * to_picks + 1) / size**2 - 2 * (picks_to_cluster[:, None] + to_cluster) / size
        mmd = mmd.masked_fill(picked, torch.inf)
        ties = mmd <= mmd.min(dim=1, keepdim=True).values + tie
        pick = torch.where(ties, candidates, n).min(dim=1).values
        pick = torch.where(forced[:, i] < 0, pick, forced[:, i])
        among_picks = among_picks + 2 * to_picks[batch, pick] + 1
        picks_to_cluster = picks_to_cluster + to_cluster[batch, pick]
        picked[batch, pick] = True
        to_picks = to_picks + kernels[batch, pick]
        picks[:, i] = pick
    return picks
