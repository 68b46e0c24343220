"""What runs on a GPU against the same on the CPU; skipped where there is none (make test-gpu)."""

from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPO

import coincide
from coincide.base.clustered_rows import ClusteredRows
from coincide.base.rows import Rows, unit_rows
from coincide.clustering import lloyd_gpu as device_lloyd
from coincide.clustering.lloyd_gpu import DeviceLloyd
from coincide.selection import kernel_gpu
from coincide.selection.picks import pick_members

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none here"),
]


def rows(n=6000, d=256, dtype=np.float16, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, d))
    x = rng.normal(size=d) + centres[rng.integers(0, 40, n)] * 0.5 + rng.normal(size=(n, d)) * 0.7
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("resident", [True, False])
def test_labels_are_those_of_the_cpu(dtype, resident, monkeypatch):
    monkeypatch.setattr(device_lloyd, "BLOCK", 1000)
    x = rows(dtype=dtype)
    expected = coincide.spherical_kmeans(x, 60, backend="memory")
    monkeypatch.setattr(device_lloyd, "fits", lambda *arguments, **options: resident)
    found = coincide.spherical_kmeans(x, 60, backend="torch")
    assert (found.labels == expected.labels).mean() > 0.999
    other = found.labels != expected.labels  # near-ties
    unit = unit_rows(x[other].astype(np.float64))
    scores = [(unit * expected.centroids[c.labels[other]]).sum(axis=1) for c in (found, expected)]
    np.testing.assert_allclose(*scores, atol=1e-5)
    np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-5)


def test_labels_are_the_best_in_float64_at_every_iteration():
    x = rows()
    state = DeviceLloyd(Rows(x), unit_rows(x[:100].astype(np.float32)), ["cuda"])
    for _ in range(5):
        state.assign()
        scores = unit_rows(x.astype(np.float64)) @ state.centroids.T.astype(np.float64)
        assert (scores[np.arange(len(x)), state.labels] >= scores.max(axis=1) - 1e-12).all()
        state.update()


def test_cuml_is_as_good():
    if find_spec("cuml") is None:
        pytest.skip("cuml is not installed")
    x = rows()
    ours = coincide.spherical_kmeans(x, 60, backend="torch")
    theirs = coincide.spherical_kmeans(x, 60, backend="cuml")
    assert theirs.similarity.mean() == pytest.approx(ours.similarity.mean(), rel=1e-3)
    assert all(after >= before - 1e-5 for before, after in pairwise(theirs.objective))


def test_density_picks_and_transferability_are_those_of_the_cpu(monkeypatch):
    x, rng = rows(2000, 64), np.random.default_rng(1)
    x = unit_rows(x.astype(np.float32)).astype(np.float16)
    labels = rng.integers(0, 30, len(x))
    clustered = ClusteredRows(x, labels)
    budgets = clustered.sizes // 5
    stats = pd.DataFrame({"share": -np.arange(30), "budget": budgets})  # picks in the order of the clusters
    monkeypatch.setattr(kernel_gpu, "BATCH_BYTES", 7 * kernel_gpu.cluster_bytes(100, 64))
    picks = np.split(pick_members(clustered, stats, device="cuda"), np.cumsum(budgets)[:-1])
    for picked, members, budget in zip(picks, clustered.members, budgets):
        assert picked.tolist() == members[coincide.greedy_mmd(x[members], budget)].tolist()
    np.testing.assert_allclose(coincide.density(x, labels, device="cuda"), coincide.density(x, labels), rtol=1e-12)
    centroids = rng.normal(size=(300, 64)) + 0.3
    on_device = coincide.transferability(centroids, device="cuda")
    np.testing.assert_allclose(on_device, coincide.transferability(centroids), rtol=1e-12)


@pytest.mark.parametrize(("dtype", "close"), [("float32", 0.99999), ("bfloat16", 0.999), ("float16", 0.9999)])
def test_activations_are_those_of_the_cpu(tiny_model, tiny_data, tmp_path, dtype, close):
    from coincide.base.activation_store import Activations
    from coincide.base.sections import ReferenceModel
    from coincide.dataset.samples import Sample
    from coincide.extraction.activations import extract
    from coincide.models.loading import load_model

    records, images = tiny_data
    samples = [Sample(r["id"], i, r) for i, r in enumerate(records)]
    found = []
    for device, kind in (("cpu", "float32"), ("cuda", dtype)):
        model, processor = load_model(tiny_model, dtype=kind, device=device)
        output = tmp_path / f"{device}.parquet"
        reference = ReferenceModel(name="tiny", layers=[0, 2], batch_tokens=600, max_tokens=512)
        assert extract(model, processor, samples, images, reference, output=output, workers=1) == []
        found.append(np.asarray(Activations(output)).astype(np.float64))
    cosines = (found[0] * found[1]).sum(axis=1) / np.linalg.norm(found[0], axis=1) / np.linalg.norm(found[1], axis=1)
    assert cosines.min() > close


def test_training_in_half_precision_goes_on_after_a_kill(tiny_model, tiny_data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPO / "tests/training")
    from test_finetune import killed_at, weights

    from coincide.base.sections import Training
    from coincide.training.finetune import finetune

    records, images = tiny_data
    settings = Training(
        epochs=2, batch_size=4, learning_rate=1e-3, device="cuda", dtype="bfloat16", save_every=3,
        gradient_checkpointing=True, lora={"r": 4, "alpha": 8, "dropout": 0.1},
    )  # fmt: skip

    def train(name):
        places = {"output": tmp_path / name, "checkpoints": tmp_path / "checkpoints"}
        finetune(tiny_model, records, images, settings, seed=1, **places)
        return weights(tmp_path / name)

    whole = train("whole")

    with killed_at(8, monkeypatch):
        train("killed")
    for name, value in train("killed").items():
        torch.testing.assert_close(value, whole[name], rtol=1e-2, atol=1e-3)
