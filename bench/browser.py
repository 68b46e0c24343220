"""The cluster browser at full size: how long it takes to write, and how it behaves in Chromium.

    python bench/browser.py --output bench/results/browser

The dataset is synthetic: clusters of heavy-tailed size, generated texts, and JPEG images of which several samples share
each. `coincide.reporting.browser.write_browser` writes the site in a process of its own, and headless Chromium opens
it from its folder. Measured are seconds and memory of the writer, files and bytes of the folder, first paint, time
until the rows are shown, memory of the page, frames while the whole list is scrolled, search, sort, and opening a
cluster.
"""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import in_new_process, parser, peak_memory, timed, write
from PIL import Image, ImageFilter

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SOURCES = 40
IMAGE_SIZE = (640, 480)
VOCABULARY = 20_000
SCROLL_FRAMES = 240
READING = 120  # pixels per frame, as a wheel that is turned fast
OPENED = 20

# Scroll from the top by so many pixels per frame, or through the whole list; the milliseconds between frames.
SCROLL = """([frames, pixels]) => new Promise(resolve => {
  const times = [], end = pixels ? frames * pixels : document.body.scrollHeight - innerHeight;
  const step = now => {
    times.push(now);
    if (times.length > frames) resolve(times.slice(1).map((time, i) => time - times[i]));
    else { scrollTo(0, end * times.length / frames); requestAnimationFrame(step); }
  };
  requestAnimationFrame(step);
})"""
# Milliseconds from an input to the frame that shows its result.
SEARCH = """query => new Promise(resolve => {
  const search = document.getElementById("search"), start = performance.now();
  search.value = query;
  search.dispatchEvent(new Event("input"));
  requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
})"""
SORT = """label => new Promise(resolve => {
  const start = performance.now();
  document.querySelector(`#columns button[data-sort=${label}]`).click();
  requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
})"""
# Milliseconds from the start of the navigation to the first paint with content, and until the rows are in the page.
TIMES = """() => ["first-contentful-paint", "shown"].map(name => performance.getEntriesByName(name)[0].startTime)"""


def write_dataset(folder, clusters, samples, images):
    """Write images and a dataset; returns the tables that the browser takes, as files."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for number in range(images):
        noise = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize(IMAGE_SIZE)
        noise.filter(ImageFilter.BoxBlur(4)).save(folder / f"images/{number}.jpg", quality=85)
    weights = rng.pareto(1.5, clusters) + 0.3
    labels = np.sort(
        np.concatenate([np.arange(clusters), rng.choice(clusters, samples - clusters, p=weights / weights.sum())])
    )
    labels = rng.permutation(labels).astype(np.int32)
    words = np.array([f"w{i:x}" for i in range(VOCABULARY)])
    sources = labels % SOURCES
    with open(folder / "data.jsonl", "w") as file:
        for i, label in enumerate(labels):
            common = words[(VOCABULARY * rng.random(60) ** 3).astype(int)]
            question = (
                f"<image>\n{words[label * 2 % VOCABULARY]} {words[label * 7 % VOCABULARY]} {' '.join(common[:15])}?"
            )
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": " ".join(common)}]
            file.write(
                json.dumps({"id": f"sample-{i}", "image": f"{rng.integers(images)}.jpg", "conversations": turns}) + "\n"
            )
    ids = pd.Series([f"sample-{i}" for i in range(samples)])
    manifest = pd.DataFrame(
        {"sample_id": ids, "source": [f"source-{s}" for s in sources], "position": np.arange(samples)}
    )
    manifest.to_parquet(folder / "manifest.parquet")
    members = pd.DataFrame({"sample_id": ids, "cluster": labels, "similarity": rng.random(samples).astype(np.float32)})
    members.to_parquet(folder / "clusters.parquet")
    stats = {name: rng.random(clusters) for name in ("transferability", "density", "share")}
    sizes = np.bincount(labels, minlength=clusters)
    pd.DataFrame({"cluster": np.arange(clusters), "size": sizes, **stats}).to_parquet(folder / "cluster_stats.parquet")
    for seed in range(2):
        kept = np.random.default_rng(seed).permutation(samples)[: samples // 5]
        table = pd.DataFrame({"sample_id": ids[kept], "rank": np.arange(len(kept))})
        table.to_parquet(folder / f"coreset-{seed}.parquet")
    np.save(folder / "centroids.npy", rng.normal(size=(clusters, 2048)).astype(np.float32))


def run_writer(folder, threads):
    """Write the browser of the dataset in a folder: seconds and peak memory, bytes."""
    from coincide.base.sections import Browser
    from coincide.dataset.formats import open_dataset
    from coincide.reporting.browser import write_browser

    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("manifest", "clusters", "cluster_stats")}
    coresets = {
        (method, "0.2"): pd.read_parquet(folder / f"coreset-{seed}.parquet")
        for seed, method in enumerate(("coincide", "random"))
    }
    before = peak_memory()
    seconds, _ = timed(
        write_browser, folder / "browser", run="synthetic", **tables, centroids=np.load(folder / "centroids.npy"),
        coresets=coresets, dataset=open_dataset(folder / "data.jsonl"), images=folder / "images", settings=Browser(),
        threads=threads,
    )  # fmt: skip
    return {"seconds": round(seconds, 1), "peak_memory": peak_memory(), "memory_before": before}


def measure_folder(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "list_bytes": (folder / "clusters.js").stat().st_size,
        "largest_file": max(path.stat().st_size for path in files),
    }


def summary_of(times):
    """Median, 95th percentile and largest of milliseconds."""
    return {
        "median": round(float(np.median(times)), 1),
        "p95": round(float(np.quantile(times, 0.95)), 1),
        "max": round(max(times), 1),
    }


def heap(session):
    session.send("HeapProfiler.collectGarbage")
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    return {"js_heap": int(metrics["JSHeapUsedSize"]), "nodes": int(metrics["Nodes"])}


def measure_page(address, clusters, width, height, repeats=5):
    """What a person notices, in Chromium, for a window of this size; milliseconds and bytes."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        loads = []
        for _ in range(repeats):
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(address)
            page.wait_for_selector(".row")
            page.wait_for_timeout(200)
            loads.append(page.evaluate(TIMES))
            page.close()
        page = browser.new_page(viewport={"width": width, "height": height})
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        page.goto(address)
        page.wait_for_selector(".row")
        memory = heap(session)
        reading = page.evaluate(SCROLL, [SCROLL_FRAMES, READING])
        frames = page.evaluate(SCROLL, [SCROLL_FRAMES, None])
        after_scroll = heap(session)
        searches = [page.evaluate(SEARCH, query) for query in ("w", "w1", "w1a", "source-3 w2", "cluster 77", "")]
        sorts = [
            page.evaluate(SORT, column) for column in ("size", "kept", "transferability", "words", "source", "density")
        ]
        opened = []
        for cluster in np.random.default_rng(0).choice(clusters, OPENED):
            start = time.perf_counter()
            page.evaluate("cluster => { location.hash = `#/cluster/${cluster}` }", int(cluster))
            page.wait_for_selector(f"text=Cluster {cluster}.")
            page.wait_for_selector(".member img[src]")
            opened.append(1000 * (time.perf_counter() - start))
        result = {
            "chromium": browser.version,
            "first_paint": summary_of([paint for paint, _ in loads]),
            "rows_shown": summary_of([rows for _, rows in loads]),
            "memory_of_the_list": memory,
            "memory_after_scrolling": after_scroll,
            "memory_after_opening": heap(session),
            "frame": summary_of(reading),
            "frame_through_the_whole_list": summary_of(frames),
            "search": summary_of(searches),
            "sort": summary_of(sorts),
            "open_cluster": summary_of(opened),
        }
        browser.close()
    return result


def main():
    options = parser(__doc__)
    options.add_argument("--clusters", type=int, default=10_000)
    options.add_argument("--samples", type=int, default=200_000)
    options.add_argument("--images", type=int, default=2_000)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--folder", help="keep the site here")
    options.add_argument("--writer", help="only write the browser of this folder, and print what that took")
    arguments = options.parse_args()
    if arguments.writer:
        print(json.dumps(run_writer(Path(arguments.writer), arguments.threads)))
        return
    folder = Path(arguments.folder or tempfile.mkdtemp()) / "synthetic"
    shutil.rmtree(folder, ignore_errors=True)
    write_dataset(folder, arguments.clusters, arguments.samples, arguments.images)
    writer = in_new_process(__file__, "--writer", folder, "--threads", arguments.threads)
    site = measure_folder(folder / "browser")
    site["files_per_thousand_samples"] = round(1000 * site["files"] / arguments.samples, 2)
    address = (folder / "browser/index.html").as_uri()
    windows = ((1280, 900), (390, 844))
    pages = {f"{width}x{height}": measure_page(address, arguments.clusters, width, height) for width, height in windows}
    sizes = {name: getattr(arguments, name) for name in ("clusters", "samples", "images", "threads")}
    load = [round(value, 1) for value in os.getloadavg()]  # other programs on the machine slow everything down
    write(arguments.output, None, load_average=load, sizes=sizes, writer=writer, site=site, pages=pages)
    print(json.dumps({"writer": writer, "site": site, "pages": pages}, indent=1))
    if not arguments.folder:
        shutil.rmtree(folder.parent)


if __name__ == "__main__":
    main()
