"""The report in a browser: no errors, no network, sorting, linked plots, hover, themes, widths and accessibility.

The screenshots are kept in build/screenshots/.
"""

import shutil

import pytest
from conftest import REPO
from report_run import HOSTILE, SCRIPT, build_run

from coincide.reporting.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed (apt-get install chromium)")
SCREENSHOTS = REPO / "build/screenshots"
READY = 'html[data-ready="1"]'
POINT = """([id, index]) => {
  const plot = document.getElementById(id), { _fullLayout: layout } = plot, trace = plot.data[0];
  const box = plot.getBoundingClientRect();
  return [box.left + layout.xaxis._offset + layout.xaxis.d2p(trace.x[index]),
          box.top + layout.yaxis._offset + layout.yaxis.d2p(trace.y[index])];
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """(path of a report, the run that it is about)."""
    folder = tmp_path_factory.mktemp("report")
    run = build_run(folder)
    write_report(folder / "report.html", run)
    return folder / "report.html", run


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, report):
    """Open the report: function of width and theme. Errors and requests fail the test."""
    problems, contexts = [], []

    def open_report(width=1280, theme="light", bypass_csp=True):  # the driver evaluates strings, which the page may not
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme=theme,
            reduced_motion="reduce",
            bypass_csp=bypass_csp,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type != "info" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else problems.append(request.url),
        )
        page.goto(report[0].as_uri())
        page.locator(READY).wait_for(state="attached", timeout=120_000)
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert problems == []


def column(page, table, number):
    return page.locator(f"#{table} tbody tr > :nth-child({number})").all_inner_texts()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_and_nothing_is_cut(open_page, width, theme):
    page = open_page(width, theme)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"report-{width}-{theme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # outside of what scrolls, no element is wider than the page
    outside = page.evaluate(
        """() => [...document.querySelectorAll('main *')].filter((node) => !node.closest('.scroll, svg, pre, .plot')
          && node.getBoundingClientRect().right > innerWidth + 1).map((node) => node.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    # the parts of a plot are inside its box, and boxes of figures do not overlap
    overlaps = page.evaluate(
        """() => {
          const boxes = [...document.querySelectorAll('figure')].map((node) => [node.querySelector('.plot').id, node.getBoundingClientRect()]);
          return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([, q]) => p.left < q.right - 1 && q.left < p.right - 1
            && p.top < q.bottom - 1 && q.top < p.bottom - 1).map(([b]) => [a, b]));
        }"""  # noqa: E501
    )
    assert overlaps == []
    cut = page.evaluate(
        """() => [...document.querySelectorAll('.plot')].filter((plot) => {
          const box = plot.getBoundingClientRect();
          return [...plot.querySelectorAll('.xtick, .ytick, .xtitle, .ytitle, .legend')].some((node) => {
            const part = node.getBoundingClientRect();
            return part.left < box.left - 2 || part.right > box.right + 2 || part.bottom > box.bottom + 2;
          });
        }).map((plot) => plot.id)"""
    )
    assert cut == []


def test_the_policy_of_the_page_refuses_nothing_that_it_needs(open_page):
    page = open_page(bypass_csp=False)
    for button in ("#theme", "#cluster-next", "#map-next", "#provenance [data-copy=commands]"):
        page.locator(button).click()
    page.locator("#cluster-panel .sample").first.wait_for()


def test_constraints_leaks_and_necessity_are_shown_as_text(open_page):
    page = open_page()
    assert "1,234" in page.locator("#constraints td").all_inner_texts()
    assert SCRIPT in page.locator("#constraints").inner_text()
    assert f"{SCRIPT}" in page.locator("#leaks summary + h3, #leaks h3").first.text_content()
    assert page.locator("#near_duplicates td").count() > 3
    assert "37.5%" in page.locator("#visual_necessity").inner_text()
    assert "4,321 samples have no image" in page.locator("#visual_necessity").inner_text()
    assert page.evaluate("window.broken") is None


def test_dataset_text_is_shown_as_text(open_page):
    page = open_page()
    assert page.evaluate("window.broken") is None
    assert SCRIPT in page.locator("#rejected table.wrap td.text").first.text_content()
    assert SCRIPT in column(page, "sources-table", 1)
    assert page.locator("#sources-share .ytick", has_text="<script>window.broken").count() == 1
    assert page.locator("#map-plot .legendtext", has_text="signs & <b>shops</b>").count() == 1
    page.locator("#map-next").click()
    card = page.locator("#map-panel .sample")
    assert card.inner_text().startswith(f"no image\ns0{HOSTILE}"[:30])
    assert "<script>window.broken = 1</script>" in card.inner_text()
    assert page.evaluate("document.querySelectorAll('main img[src=x]').length") == 0


def test_tables_sort_by_number_and_by_text_with_the_keyboard(open_page):
    page = open_page()
    button = page.locator("#sources-table th button", has_text="samples").first
    button.focus()
    page.keyboard.press("Enter")
    samples = [int(text.replace(",", "")) for text in column(page, "sources-table", 2)]
    assert samples == sorted(samples, reverse=True)
    assert page.locator("#sources-table th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    samples = [int(text.replace(",", "")) for text in column(page, "sources-table", 2)]
    assert samples == sorted(samples)
    page.locator("#methods-table th button", has_text="method").first.click()
    page.locator("#methods-table th button", has_text="method").first.click()
    methods = column(page, "methods-table", 1)
    assert methods == sorted(methods)
    page.locator("#methods-table th button", has_text="minus random").click()
    differences = column(page, "methods-table", 5)
    assert differences[-3:] == ["–"] * 3  # full and random have none, in either direction


def test_pointing_at_a_cluster_shows_its_samples_and_selecting_it_marks_all_plots(open_page, report):
    page = open_page()
    page.locator("#clusters-scores").scroll_into_view_if_needed()
    page.mouse.move(*page.evaluate(POINT, ["clusters-scores", 0]))
    card = page.locator("#card")
    card.wait_for(state="visible")
    largest = int(report[1].cluster_stats.sort_values("share").iloc[-1]["cluster"])
    assert f"Cluster {largest}" in card.inner_text()
    assert "transferability" in card.inner_text()
    page.mouse.click(*page.evaluate(POINT, ["clusters-scores", 0]))
    page.locator("#cluster-panel h3").wait_for()
    assert page.locator("#cluster-panel h3").inner_text() == f"Cluster {largest}"
    assert page.locator("#cluster-panel .sample").count() > 1
    marked = page.evaluate(
        """['clusters-scores', 'clusters-budgets', 'clusters-shares']
             .map((id) => document.getElementById(id).data[0].selectedpoints)"""
    )
    assert marked == [[0]] * 3
    on_map = page.evaluate(
        """() => document.getElementById('map-plot').data.flatMap((trace) =>
             (trace.selectedpoints ?? []).map((i) => trace.customdata[i]))"""
    )
    clusters = report[1].clusters["cluster"]
    assert sorted(on_map) == clusters.index[clusters == largest].tolist()
    page.locator("#cluster-next").click()
    assert page.locator("#cluster-panel h3").inner_text() != f"Cluster {largest}"
    page.locator("#cluster-number").fill("3")
    page.locator("#cluster-number").press("Enter")
    assert page.locator("#cluster-panel h3").inner_text() == "Cluster 3"


def test_dragging_marks_clusters(open_page):
    page = open_page()
    plot = page.locator("#clusters-budgets")
    plot.scroll_into_view_if_needed()
    box = plot.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2, steps=4)
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 2, steps=4)
    page.mouse.up()
    page.wait_for_function("document.getElementById('clusters-shares').data[0].selectedpoints?.length > 5")


def test_the_map_has_colours_positions_and_samples(open_page):
    page = open_page()
    page.locator("#map-plot").scroll_into_view_if_needed()
    page.mouse.move(*page.evaluate(POINT, ["map-plot", 3]))
    page.locator("#card .sample").wait_for(state="visible")
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()
    assert page.evaluate("document.getElementById('map-plot').data.length") == 6  # sources
    page.locator("#map-colour").select_option(label="kept by random 20%")
    page.wait_for_function("document.getElementById('map-plot').data.length === 2")
    kept = page.evaluate("document.getElementById('map-plot').data[1].x.length")
    assert kept == 60  # of 300
    before = page.evaluate("document.getElementById('map-plot').data[0].x.slice(0, 5)")
    page.locator("#map-layout").select_option("pca")
    page.wait_for_function(
        "(before) => document.getElementById('map-plot').data[0].x.slice(0, 5).join() !== before.join()", arg=before
    )
    images = page.locator("#map-panel img")
    for _ in range(60):
        page.locator("#map-next").click()
        if images.count():
            break
    assert page.evaluate("document.querySelector('#map-panel img').naturalWidth") > 0


def test_the_theme_switches_and_the_plots_follow(open_page):
    page = open_page(theme="light")
    colour = "document.getElementById('tasks-plot').layout.font.color"
    light = page.evaluate(colour)
    page.locator("#theme").click()
    page.wait_for_function(f"{colour} !== '{light}'")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.locator("#theme").inner_text() == "Light"


def test_the_page_can_be_printed(open_page):
    page = open_page(theme="dark")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.pdf(path=SCREENSHOTS / "report.pdf", format="A4")
    page.emulate_media(media="print")
    assert page.locator("header nav").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_accessible(open_page, theme):
    """No finding of axe-core that is serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(theme=theme)
    for summary in page.locator("summary").all():
        summary.click()
    page.locator("#cluster-next").click()
    response = axe.Axe().run(page).response
    assert len(response["passes"]) > 20
    grave = [
        (finding["id"], [node["html"][:120] for node in finding["nodes"][:3]])
        for finding in response["violations"]
        if finding["impact"] in ("serious", "critical")
    ]
    assert grave == []
