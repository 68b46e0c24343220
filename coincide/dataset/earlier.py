"""A finished run that another run extends: its samples are among those of the other run (`dataset.extends`)."""

import json
import logging
from collections.abc import Collection, Iterator
from pathlib import Path

from coincide.base.errors import UserError

log = logging.getLogger(__name__)

RECORD = '"record": '  # of a line of a shard; what precedes it may differ between runs


def check_earlier_run(folder: str | Path, *, sample_metrics: bool) -> None:
    """Check that a folder has the results of a run that another run can extend.

    Raises:
        UserError: it does not.
    """
    folder = Path(folder)
    for name in (
        "shards",
        "activations.parquet",
        "manifest.parquet",
        *["sample_metrics/sample_metrics.parquet"] * sample_metrics,
    ):
        if not (folder / name).exists():
            raise UserError(
                f"{folder} has no {name}: name the folder of a run that has extracted its samples itself"
                f"{' with reference_model.sample_metrics' if 'metrics' in name else ''}, results/<run>"
            )


def read_sample_ids(path: str | Path) -> frozenset[str]:
    """The ids of a manifest.parquet or coreset.parquet."""
    import pyarrow as pa  # the workflow imports this module before the first job, and has no use for tables
    import pyarrow.parquet as pq

    return frozenset(pq.read_table(path, columns=["sample_id"])["sample_id"].cast(pa.string()).to_pylist())


def same_records(shard: str | Path, earlier: Collection[Path]) -> set[str]:
    """Ids of the samples of a shard whose record an earlier shard has, too."""
    records = dict(_records(shard))
    same = {sample_id for path in earlier for sample_id, record in _records(path) if records.get(sample_id) == record}
    log.info("%d of %d samples are reused", len(same), len(records))
    return same


def _records(path: str | Path) -> Iterator[tuple[str, str]]:
    """(sample id, text of the record) of each line of a shard."""
    decode = json.JSONDecoder().raw_decode
    start = len('{"sample_id": ')
    with open(path, encoding="utf-8") as file:
        for line in file:
            sample_id, end = decode(line, start)
            yield sample_id, line[line.index(RECORD, end) :]
