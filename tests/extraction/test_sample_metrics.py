"""Sample metrics against a plain forward pass of each sample."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_activations import about_one_image, as_samples, encoder_of, run_extract

from coincide.base.activation_store import Activations
from coincide.dataset.samples import Sample
from coincide.extraction.sample_metrics import EMBEDDINGS, METRICS, merge_sample_metrics, metrics_table
from coincide.models.loading import load_model


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model, device="cpu")


def plain_metrics(model, encoded):
    """loss, EL2N, margin and embeddings of one sample, token by token, from the logits of all tokens."""
    inputs = {"input_ids": torch.from_numpy(encoded.ids)[None]}
    inputs |= {name: torch.from_numpy(value) for name, value in encoded.image_inputs.items()}
    with torch.inference_mode():
        output = model(**inputs, output_hidden_states=True)
        last = model.model(**inputs).last_hidden_state[0].double().numpy()
    rows = []
    for position in np.flatnonzero(encoded.masks.answer):
        logits, token = output.logits[0, position - 1].double().numpy(), encoded.ids[position]
        p = np.exp(logits - logits.max())
        p /= p.sum()
        error = p.copy()
        error[token] -= 1
        rows.append((-np.log(p[token]), np.sqrt((error**2).sum()), p[token] - np.delete(p, token).max()))
    return np.mean(rows, axis=0), [last[-1] / np.linalg.norm(last[-1]), last.mean(axis=0)]


@pytest.mark.parametrize("shared", [False, True])
def test_metrics_equal_a_plain_forward_pass(loaded, tiny_data, tmp_path, shared):
    records, folder = tiny_data
    records = [*about_one_image(records, 9), *records] if shared else records
    samples = [Sample(str(row), row, record) for row, record in enumerate(records)]
    without, path, metrics = tmp_path / "without.parquet", tmp_path / "shard.parquet", tmp_path / "metrics"
    run_extract(loaded, samples, folder, without)
    assert run_extract(loaded, samples, folder, path, sample_metrics=True, metrics_output=metrics) == []
    assert np.asarray(Activations(path)).tobytes() == np.asarray(Activations(without)).tobytes()
    table = pd.read_parquet(metrics / "sample_metrics.parquet")
    assert table["sample_id"].tolist() == [sample.id for sample in samples]
    vectors = {name: np.asarray(Activations(metrics / f"{name}.parquet")) for name in EMBEDDINGS}
    encoder = encoder_of(*loaded, folder)
    for i, sample in enumerate(samples):
        values, embeddings = plain_metrics(loaded[0], encoder([sample])[0])
        np.testing.assert_allclose(table.loc[i, list(METRICS)].to_numpy(float), values, rtol=1e-4, atol=1e-4)
        for name, expected in zip(EMBEDDINGS, embeddings):
            np.testing.assert_allclose(vectors[name][i], expected, atol=2e-3)


def test_extra_metrics_change_no_other_metric(loaded, tiny_data, tmp_path):
    records, folder = tiny_data
    samples = as_samples([*about_one_image(records, 5), *records])
    samples = [Sample(str(row), row, sample.record) for row, sample in enumerate(samples)]
    written = {}
    for name, extra in (("without", []), ("with", ["loss_no_image", "question_losses", "vision_features"])):
        path, metrics = tmp_path / f"{name}.parquet", tmp_path / f"{name}.metrics"
        changes = {"sample_metrics": True, "metrics_output": metrics, "extra_metrics": extra}
        assert run_extract(loaded, samples, folder, path, **changes) == []
        vectors = [
            np.asarray(Activations(p)).tobytes() for p in (path, *(metrics / f"{e}.parquet" for e in EMBEDDINGS))
        ]
        written[name] = vectors, pd.read_parquet(metrics / "sample_metrics.parquet")
    assert written["with"][0] == written["without"][0]
    table = written["with"][1]
    pd.testing.assert_frame_equal(table[["sample_id", *METRICS]], written["without"][1], check_exact=True)
    has_image = [bool(sample.record.get("image")) for sample in samples]
    added = ["loss_no_image", "visual_necessity", "question_loss", "question_loss_given_answer"]
    assert table.columns.tolist() == ["sample_id", *METRICS, added[0], *added[2:], added[1]]
    for column in added:
        assert table[column].notna().tolist() == has_image


def test_metrics_of_shards_are_joined_in_manifest_order(loaded, tiny_data, tmp_path):
    records, folder = tiny_data
    samples = as_samples(records)
    for number, part in enumerate((samples[:10], samples[10:])):
        metrics = tmp_path / f"{number}.metrics"
        changes = {"sample_metrics": True, "metrics_output": metrics, "extra_metrics": ["vision_features"]}
        run_extract(loaded, part, folder, tmp_path / f"{number}.parquet", **changes)
    shards = [tmp_path / "0.metrics", tmp_path / "1.metrics"]
    ids = [sample.id for sample in samples]
    merge_sample_metrics(ids, shards, tmp_path / "metrics")
    assert pd.read_parquet(tmp_path / "metrics/sample_metrics.parquet")["sample_id"].tolist() == ids
    for name in (*EMBEDDINGS, "vision"):
        assert Activations(tmp_path / f"metrics/{name}.parquet").sample_ids.tolist() == ids
    with pytest.raises(ValueError, match="not those of the manifest"):
        merge_sample_metrics(ids[::-1], shards, tmp_path / "other")


def test_embeddings_beyond_float16_are_limited_with_a_warning(caplog):
    columns = np.zeros((3, len(METRICS) + 2 * 2), np.float32)
    columns[1, -1], columns[2, -2] = 1e5, -65504
    table = metrics_table(["a", "b", "c"], columns)
    mean = np.frombuffer(b"".join(table["mean"]), np.float16).reshape(3, 2)
    np.testing.assert_array_equal(mean, np.float16([[0, 0], [0, 65504], [-65504, 0]]))
    (record,) = caplog.records
    assert record.getMessage() == (
        "the embeddings of 1 samples exceed the range of float16 and are limited to 65504: b"
    )
