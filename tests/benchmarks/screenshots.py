"""Pictures for docs/: `python tests/benchmarks/screenshots.py serve MODEL [--teacher T]`, and
`python tests/benchmarks/screenshots.py report RUN [RUN ...]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

sys.path.append(str(Path(__file__).resolve().parents[1] / "integration"))

from browser import chromium  # noqa: E402 - after the path
from serving import serving  # noqa: E402

from fitb.tools.report.build import report  # noqa: E402
from fitb.tools.report.report_config import ReportConfig  # noqa: E402

DOCS = Path(__file__).resolve().parents[2] / "docs"
SENTENCE = "Return the ___ of the ___ as a string."
DESKTOP = {"viewport": {"width": 1080, "height": 860}}
DESK_OF_CHARTS = {"viewport": {"width": 1320, "height": 1460}}
PHONE = {
    "viewport": {"width": 390, "height": 760},
    "device_scale_factor": 1.5,
    "is_mobile": True,
    "has_touch": True,
}


def open_page(browser: Browser, url: str, **device: Any) -> Page:
    page = browser.new_context(**device).new_page()
    page.goto(url)
    return page


def shoot(browser: Browser, url: str, name: str, opened: bool, **device: Any) -> None:
    """Fill the sentence and take a picture, with the candidates of its first blank open or not."""
    page = open_page(browser, url, **device)
    page.fill("#text", SENTENCE)
    page.press("#text", "Control+Enter")
    page.wait_for_selector(".blank")
    page.wait_for_load_state("networkidle")
    page.evaluate("scrollTo(0, 0)")
    if opened:
        page.locator(".blank").first.click()
        page.wait_for_load_state("networkidle")
    page.wait_for_timeout(500)  # until it has come to rest
    page.screenshot(path=DOCS / name)


def shoot_serve(words: list[str]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), *words) as served,
        chromium() as browser,
    ):
        shoot(browser, served.url, "serve.png", opened=True, **DESKTOP)
        shoot(browser, served.url, "serve-phone.png", opened=False, **PHONE)


def shoot_report(runs: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        written = Path(folder) / "report.html"
        report(ReportConfig(runs, out=str(written)))
        tall = PHONE | {"viewport": {"width": 390, "height": 1290}}
        devices = (("report.png", DESK_OF_CHARTS), ("report-phone.png", tall))
        for name, device in devices:
            open_page(browser, written.as_uri(), **device).screenshot(path=DOCS / name)


if __name__ == "__main__":
    {"serve": shoot_serve, "report": shoot_report}[sys.argv[1]](sys.argv[2:])
