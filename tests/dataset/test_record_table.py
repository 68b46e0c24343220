"""Records in a memory-mapped file."""

import pickle

import pytest

from coincide.dataset.conversation import text_length
from coincide.dataset.record_table import RecordTable, records_digest, text_lengths, write_record_table


def test_records_come_back_as_they_were(tiny_data, tmp_path):
    records, _ = tiny_data
    table = write_record_table(({**record, "notes": "not read"} for record in records), tmp_path / "records.arrow")
    assert list(table) == records
    assert (table[-1], table[3:5]) == (records[-1], records[3:5])
    assert table.text_lengths.tolist() == [text_length(record["conversations"]) for record in records]
    assert list(pickle.loads(pickle.dumps(table))) == records
    with pytest.raises(IndexError):
        table[len(records)]


def test_many_records_and_none(tmp_path):
    turns = [{"from": "human", "value": "a\ud800"}, {"from": "gpt", "value": "ü"}]
    records = [{"id": i, "conversations": turns} for i in range(10_000)]
    table = write_record_table(records, tmp_path / "many.arrow")
    assert len(table) == 10_000
    assert (table[0], table[4096], table[9_999]) == (records[0], records[4096], records[9_999])
    assert len(write_record_table([], tmp_path / "none.arrow")) == 0


def test_the_digest_is_of_the_content(tiny_data, tmp_path):
    records, _ = tiny_data
    table = write_record_table(records, tmp_path / "records.arrow")
    assert RecordTable(tmp_path / "records.arrow").digest == table.digest == records_digest(records)
    assert text_lengths(records).tolist() == text_lengths(table).tolist()
    answer = {**records[0]["conversations"][1], "value": "another answer"}
    changed = {**records[0], "conversations": [records[0]["conversations"][0], answer]}
    assert records_digest([changed, *records[1:]]) != table.digest  # the ids are the same
    assert records_digest(records[1:]) != table.digest
