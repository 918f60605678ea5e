"""Pictures of the page for docs/: `python tests/integration/screenshots.py MODEL [--teacher T]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from browser import chromium
from playwright.sync_api import Browser
from serving import serving

DOCS = Path(__file__).resolve().parents[2] / "docs"
SENTENCE = "Return the ___ of the ___ as a string."
DESKTOP = {"viewport": {"width": 1080, "height": 860}}
PHONE = {
    "viewport": {"width": 390, "height": 760},
    "device_scale_factor": 1.5,
    "is_mobile": True,
    "has_touch": True,
}


def shoot(browser: Browser, url: str, name: str, opened: bool, **device: Any) -> None:
    """Fill the sentence and take a picture, with the candidates of its first blank open or not."""
    page = browser.new_context(**device).new_page()
    page.goto(url)
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


def main(words: list[str]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), *words) as served,
        chromium() as browser,
    ):
        shoot(browser, served.url, "serve.png", opened=True, **DESKTOP)
        shoot(browser, served.url, "serve-phone.png", opened=False, **PHONE)


if __name__ == "__main__":
    main(sys.argv[1:])
