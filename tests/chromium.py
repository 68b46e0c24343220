"""Pages in headless Chromium, for tests of what the workflow writes for people to look at."""

import os
import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"
)
WIDTHS = {"wide": (1280, 900), "phone": (390, 844)}


@contextmanager
def chromium():
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # the sandbox needs privileges that containers do not have
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_page(browser, address, *, width="wide", scheme="light"):
    """A page at a width of WIDTHS, in light or dark colours.

    At its end, nothing was written to the console, no error was raised, and nothing was loaded from elsewhere than the
    files of the page.
    """
    columns, lines = WIDTHS[width]
    page = browser.new_page(viewport={"width": columns, "height": lines}, color_scheme=scheme)
    problems, addresses = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(address)
    yield page
    page.close()
    folder = os.path.dirname(address.split("#")[0])
    assert not problems
    assert [other for other in addresses if not other.startswith((f"{folder}/", "data:"))] == []


def is_cut_off(page):
    """Whether the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
