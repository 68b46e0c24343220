"""A run that extends a finished one: which samples are reused, and that their rows are those of the finished run."""

import copy
import json

import numpy as np
import pandas as pd
import pytest

from coincide.base.activation_store import Activations
from coincide.base.errors import UserError
from coincide.base.sections import ReferenceModel
from coincide.dataset.earlier import check_earlier_run, same_records
from coincide.dataset.samples import Sample
from coincide.extraction import activations
from coincide.extraction.activations import extract
from coincide.extraction.extractor import Extractor
from coincide.extraction.merge import merge
from coincide.extraction.reuse import EarlierRows
from coincide.extraction.sample_metrics import merge_sample_metrics
from coincide.models.loading import load_model


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model, device="cpu")


def reference(**changes):
    return ReferenceModel(**{"name": "m", "layers": [0, 2], "batch_tokens": 300, "max_tokens": 200, **changes})


def write_shard(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"sample_id": sample.id, "position": sample.dataset_row, "place": place, "record": sample.record}
        for place, sample in enumerate(samples)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def as_samples(records):
    return [Sample(record["id"], row, record) for row, record in enumerate(records)]


def finished_run(loaded, samples, images, folder, **changes):
    """The artefacts of a run that another one extends."""
    write_shard(folder / "shards/shard-00000.jsonl", samples)
    shard, metrics = folder / "activations/shard-00000.parquet", folder / "activations/metrics"
    extract(*loaded, samples, images, reference(**changes), output=shard, metrics_output=metrics)
    ids = [sample.id for sample in samples]
    manifest = pd.DataFrame({"sample_id": ids, "shard": 0})
    merge(manifest, [shard], folder / "activations.parquet")
    manifest.to_parquet(folder / "manifest.parquet")
    merge_sample_metrics(ids, [metrics], folder / "sample_metrics")
    return folder


def test_a_sample_is_the_same_if_id_and_record_are(tmp_path):
    records = [{"id": "a", "text": '"record": x'}, {"id": "b", "text": "é"}, {"id": "c", "text": "old"}]
    earlier = write_shard(tmp_path / "old.jsonl", as_samples(records))
    changed = [{"id": "new"}, {"id": "c", "text": "new"}, *records[:2]]
    assert same_records(write_shard(tmp_path / "new.jsonl", as_samples(changed)), [earlier]) == {"a", "b"}


@pytest.mark.parametrize("sample_metrics", [False, True])
def test_only_new_and_changed_samples_are_read(loaded, tiny_data, tmp_path, monkeypatch, sample_metrics):
    records, images = copy.deepcopy(tiny_data[0]), tiny_data[1]
    monkeypatch.setattr(activations, "WINDOW", 7)
    old = finished_run(loaded, as_samples(records[:14]), images, tmp_path / "old", sample_metrics=sample_metrics)
    records[3]["conversations"][0]["value"] += " really?"
    order = [*records[20:], *records[:20][::-1]]
    samples = as_samples(order)
    shard = write_shard(tmp_path / "new/shards/shard-00000.jsonl", samples)
    settings = reference(sample_metrics=sample_metrics, batch_tokens=500)
    read = []
    run = Extractor.run

    def counted(self, batch):
        for sample, vector in run(self, batch):
            read.append(sample.id)
            yield sample, vector

    monkeypatch.setattr(Extractor, "run", counted)
    earlier = EarlierRows(old, shard, sample_metrics=sample_metrics)
    outputs = {}
    for name, rows in (("extended", earlier), ("whole", None)):
        read.clear()
        outputs[name] = tmp_path / f"{name}.parquet", tmp_path / f"{name}.metrics"
        path, metrics = outputs[name]
        assert extract(*loaded, samples, images, settings, output=path, metrics_output=metrics, earlier=rows) == []
        if rows:
            assert sorted(read) == sorted([records[3]["id"], *(record["id"] for record in records[14:])])
    extended, whole = (Activations(path) for path, _ in outputs.values())
    assert extended.sample_ids.tolist() == whole.sample_ids.tolist() == [record["id"] for record in order]
    np.testing.assert_allclose(np.asarray(extended), np.asarray(whole), atol=2e-3)
    stored = Activations(old / "activations.parquet")
    place = {sample_id: row for row, sample_id in enumerate(stored.sample_ids)}
    reused = [i for i, record in enumerate(order) if record["id"] in earlier.rows]
    assert len(reused) == 13
    assert (extended.metadata[0]["reused"], whole.metadata[0].get("reused")) == (13, None)
    expected = stored.rows([place[order[i]["id"]] for i in reused])
    assert extended.rows(reused).tobytes() == expected.tobytes()
    if sample_metrics:
        tables = [pd.read_parquet(metrics / "sample_metrics.parquet") for _, metrics in outputs.values()]
        pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-5)
        for name in ("last_token", "mean"):
            vectors = [np.asarray(Activations(metrics / f"{name}.parquet")) for _, metrics in outputs.values()]
            np.testing.assert_allclose(*vectors, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"layers": [0, 3]}, r"layers \(\[0, 2\], here \[0, 3\]\)"), ({"max_tokens": 150}, "settings")],
)
def test_rows_of_another_model_are_refused(loaded, tiny_data, tmp_path, changes, message):
    records, images = tiny_data
    samples = as_samples(records[:4])
    old = finished_run(loaded, samples, images, tmp_path / "old")
    earlier = EarlierRows(old, old / "shards/shard-00000.jsonl", sample_metrics=False)
    with pytest.raises(UserError, match=f"cannot be reused; these differ: .*{message}"):
        extract(*loaded, samples, images, reference(**changes), output=tmp_path / "a.parquet", earlier=earlier)


def test_a_folder_without_a_finished_run_is_refused(loaded, tiny_data, tmp_path):
    with pytest.raises(UserError, match="has no shards: name the folder of a run"):
        check_earlier_run(tmp_path, sample_metrics=False)
    old = finished_run(loaded, as_samples(tiny_data[0][:2]), tiny_data[1], tmp_path / "old")
    check_earlier_run(old, sample_metrics=False)
    with pytest.raises(UserError, match=r"has no sample_metrics/.*with reference_model\.sample_metrics"):
        check_earlier_run(old, sample_metrics=True)
