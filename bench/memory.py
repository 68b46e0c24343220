"""Memory of the records of a training per process, and of the read-ahead of extraction, as unique memory (USS).

    python bench/memory.py [--output bench/results/memory]       # two minutes

Unique memory is what a process would give back if it ended; pages that processes share, such as those of a mapped
file, do not count. Records: several processes read the same records as Python lists, or from a memory-mapped table.
Read-ahead: workers encode images of 8 MB, as of a page with Qwen-VL, ahead of a model that takes them slowly; all
processes are counted.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from common import parser, write

from coincide.dataset.samples import Sample
from coincide.extraction.encoding import Encoded, encoded_groups
from coincide.models.chat import Masks

RECORDS, PROCESSES = 100_000, 4
IMAGE_BYTES, GROUPS, WORKERS, SECONDS_PER_GROUP = 8 * 2**20, 480, 4, 0.02
READ = """
import json, random, sys
import psutil
import coincide.dataset.formats
kind, path = sys.argv[1:]
before = psutil.Process().memory_full_info().uss
if kind == "list":
    from coincide.dataset.formats import read_records
    records = read_records(path)
else:
    from coincide.dataset.record_table import RecordTable
    records = RecordTable(path)
for _ in range(20_000):  # as a training does: in random order
    records[random.randrange(len(records))]["conversations"]
print(psutil.Process().memory_full_info().uss - before, len(records), flush=True)
sys.stdin.read()
"""


def make_records(count):
    """LLaVA records with conversations as long as LLaVA-1.5's."""
    rng = np.random.default_rng(0)
    words = np.array("a the colour of car person left right what is why describe image small large near".split())
    for i in range(count):
        turns = []
        for turn in range(1 + rng.integers(4)):
            question = " ".join(rng.choice(words, 12))
            answer = " ".join(rng.choice(words, int(rng.integers(4, 60))))
            mark = "<image>\n" if turn == 0 else ""
            turns += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
        yield {"id": f"{i:012d}", "image": f"coco/train2017/{i:012d}.jpg", "conversations": turns}


def unique_memory_of_records(kind, path):
    """Bytes per record and process, with PROCESSES processes at the same time."""
    command = [sys.executable, "-c", READ, kind, path]
    readers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    figures = [list(map(int, reader.stdout.readline().split())) for reader in readers]
    for reader in readers:
        reader.communicate()
    return float(np.mean([size / count for size, count in figures]))


def page(group):
    """An encoded sample with one large image."""
    mask = np.zeros(64, bool)
    image = np.ones(IMAGE_BYTES // 4, np.float32)
    return [Encoded(Sample(str(i), i, {}), np.arange(64), Masks(mask, mask, mask), {}, {"x": image}) for i in group]


def peak_of_read_ahead():
    """Peak of the unique memory of this process and its workers, in bytes, above that at the start."""
    process = psutil.Process()
    before, peak = process.memory_full_info().uss, 0
    for number, _ in enumerate(encoded_groups([[i] for i in range(GROUPS)], page, WORKERS)):
        time.sleep(SECONDS_PER_GROUP)
        if number % 16 == 0:
            processes = [process, *process.children()]
            peak = max(peak, sum(p.memory_full_info().uss for p in processes))
    return peak - before


def main():
    """Run both benchmarks and write the figures."""
    output = parser(__doc__).parse_args().output
    results = {"records": RECORDS, "processes": PROCESSES, "image_bytes": IMAGE_BYTES, "groups": GROUPS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.json"
        path.write_text(json.dumps(list(make_records(RECORDS))))
        results["list_bytes_per_record"] = unique_memory_of_records("list", path)
        try:
            from coincide.dataset.record_table import write_record_table
        except ImportError:  # an earlier version
            pass
        else:
            write_record_table(make_records(RECORDS), Path(folder) / "records.arrow")
            results["table_bytes_per_record"] = unique_memory_of_records("table", Path(folder) / "records.arrow")
    results["read_ahead_peak_bytes"] = peak_of_read_ahead()
    print(json.dumps(results, indent=1))
    write(output, None, **results)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
