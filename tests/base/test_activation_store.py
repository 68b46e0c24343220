"""Activation files: round trip, detection of damage, and the merge of shards."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from coincide.base.activation_store import Activations, StorageError, write_activations
from coincide.dataset.samples import Reason, RejectedSample, rejected_table
from coincide.extraction.merge import merge, split_rejected

METADATA = {"model": "m", "revision": None, "layers": [0, 1], "hidden_size": 2, "blocks": ["visual", "text"]}


def write(path, ids, rows, group=4, **changes):
    blocks = ((ids[i : i + group], rows[i : i + group]) for i in range(0, len(ids), group))
    write_activations(path, blocks, dimension=rows.shape[1], metadata={**METADATA, **changes})


@pytest.fixture
def shards(tmp_path):
    """Ten samples in two shards."""
    rows = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float16)
    ids = [f"s{i}" for i in range(10)]
    paths = [tmp_path / "shard-0.parquet", tmp_path / "shard-1.parquet"]
    write(paths[0], ids[:6], rows[:6])
    write(paths[1], ids[6:], rows[6:])
    manifest = pd.DataFrame({"sample_id": ids, "shard": [0] * 6 + [1] * 4, "position": range(10)})
    return manifest, rows, paths


def test_round_trip(shards, tmp_path):
    _, rows, paths = shards
    stored = Activations(paths[0])
    assert stored.shape == (6, 8)
    assert [len(block) for block in stored] == [4, 2]
    assert np.concatenate(list(stored)).tobytes() == rows[:6].tobytes()
    assert stored.text_columns.tolist() == [False, False, True, True] * 2
    stored.verify()
    assert str(pq.read_schema(paths[0]).field("activation").type) == "fixed_size_binary[16]"


def test_an_interrupted_write_leaves_no_file(tmp_path):
    def blocks():
        yield ["a"], np.zeros((1, 2), np.float16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_activations(tmp_path / "x.parquet", blocks(), dimension=2, metadata=METADATA)
    assert list(tmp_path.iterdir()) == []


def test_merge_is_one_dataset_in_manifest_order(shards, tmp_path):
    manifest, rows, paths = shards
    merge(manifest, paths, tmp_path / "activations.parquet")
    merged = Activations(tmp_path / "activations.parquet")
    assert merged.sample_ids.tolist() == manifest["sample_id"].tolist()
    assert np.concatenate(list(merged)).tobytes() == rows.tobytes()
    table = pq.read_table(tmp_path / "activations.parquet")  # any Parquet reader can read it
    assert np.frombuffer(table["activation"][9].as_py(), np.float16).tolist() == rows[9].tolist()
    paths[0].unlink()  # the merge does not depend on the shards any more
    assert len(list(Activations(tmp_path / "activations.parquet"))) == 3


@pytest.mark.parametrize("position", ["middle", "end"])
def test_damaged_shards_are_reported_and_moved_aside(shards, tmp_path, position):
    manifest, _, paths = shards
    content = bytearray(paths[1].read_bytes())
    if position == "middle":
        start = content.index(np.concatenate(list(Activations(paths[1])))[2].tobytes())
        content[start] ^= 1
    else:
        content = content[:-100]
    paths[1].unlink()
    paths[1].write_bytes(content)
    with pytest.raises(StorageError, match=r"^1 of 2 shards cannot be used:\n.*shard-1\.parquet"):
        merge(manifest, paths, tmp_path / "activations.parquet")
    assert not (tmp_path / "activations.parquet").exists()
    assert [path.exists() for path in paths] == [True, False]  # moved aside, so that only this shard is computed again
    assert Path(f"{paths[1]}.damaged").read_bytes() == content


def test_merge_refuses_shards_of_other_samples_or_models(shards, tmp_path):
    manifest, rows, paths = shards

    def restore_shards():
        for path in paths:
            moved_aside = Path(f"{path}.damaged")
            if moved_aside.exists():
                moved_aside.rename(path)

    with pytest.raises(StorageError, match="does not hold the samples of shard 0"):
        merge(manifest, paths[::-1], tmp_path / "out")
    restore_shards()
    with pytest.raises(StorageError, match="does not hold the samples of shard 1"):
        merge(manifest.drop(9), paths, tmp_path / "out")
    restore_shards()
    write(paths[1], manifest["sample_id"].tolist()[6:], rows[6:], model="another")
    with pytest.raises(StorageError, match="another"):
        merge(manifest, paths, tmp_path / "out")
    restore_shards()
    rows[7, 0] = np.nan
    write(paths[1], manifest["sample_id"].tolist()[6:], rows[6:])
    with pytest.raises(StorageError, match="NaN"):
        merge(manifest, paths, tmp_path / "out")


def test_every_row_is_in_exactly_one_table_after_the_merge(shards):
    manifest, _, _ = shards
    row = lambda i: RejectedSample(f"s{i}", i, Reason.TOO_LONG, "x")  # noqa: E731
    early = rejected_table([RejectedSample("s12", 12, Reason.MISSING_IMAGE, "x")])
    kept, rejected = split_rejected(manifest, early, [rejected_table([row(3)]), rejected_table([row(7), row(8)])])
    assert rejected["position"].tolist() == [3, 7, 8, 12]
    assert kept["position"].tolist() == [0, 1, 2, 4, 5, 6, 9]


@pytest.mark.parametrize("layout", ["one page", "many pages", "compressed", "dictionary"])
def test_rows_by_position_for_any_layout(shards, tmp_path, layout):
    _, rows, paths = shards
    options = {
        "one page": None,
        "many pages": {"data_page_size": 16, "write_batch_size": 1, "compression": "none", "use_dictionary": False},
        "compressed": {"compression": "zstd", "use_dictionary": False},
        "dictionary": {"compression": "none", "use_dictionary": True},
    }[layout]
    folder = tmp_path / "all"
    folder.mkdir()
    for path in paths:
        if options:  # the same table in a layout of another writer
            table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
            pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4, **options)
        path.rename(folder / path.name)
    stored = Activations(folder)
    assert [group.offset is not None for group in stored._groups] == [layout == "one page"] * 3
    order = np.array([9, 0, 3, 3, 6, 5])
    assert stored.rows(order).tobytes() == rows[order].tobytes()
    assert stored.rows([]).shape == (0, 8)
