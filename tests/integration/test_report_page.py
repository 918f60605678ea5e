"""The page of `fitb report` in a real browser, as a file, on a desk and on a phone."""

from __future__ import annotations

from browser import chromium
from run_folder import write_run

from fitb.tools.report.build import report
from fitb.tools.report.report_config import ReportConfig

PHONE = {"viewport": {"width": 375, "height": 700}, "is_mobile": True, "has_touch": True}
HOSTILE = "<script>document.title=1</script>&lt;" + "x" * 80
WIDTH = "document.documentElement.scrollWidth"


def make_run(folder, steps):
    """A run whose name is hostile and long, preempted once."""
    records = [
        {"train/step": i, "student/loss_mlm": 9 - i / 9, "distill/total": 80 / i, "optim/lr": 0.1}
        for i in range(1, steps + 1)
    ]
    begin = {"event": "attempt", "world_size": 2, "hosts": ["h" * 60]}
    events = [
        {**begin, "attempt": 1, "time": "2026-11-25T10:00:00+00:00"},
        {"event": "stop", "attempt": 1, "time": "2026-11-25T10:09:00+00:00", "exit_code": 1,
         "reason": HOSTILE, "step": 5},
        {**begin, "attempt": 2, "time": "2026-11-25T11:00:00+00:00"},
        {"event": "stop", "attempt": 2, "time": "2026-11-25T11:30:00+00:00", "exit_code": 0},
    ]  # fmt: skip
    config = {"steps": steps, "name": HOSTILE}
    return write_run(folder, metrics=records, events=events, config=config)


def test_a_page_opens_from_a_file_asks_for_nothing_and_fits_a_phone(tmp_path):
    runs = [make_run(tmp_path / HOSTILE.replace("/", ""), 40), make_run(tmp_path / "b", 20)]
    page = tmp_path / "page.html"
    charts = report(ReportConfig([str(run) for run in runs], out=str(page)))["charts"]
    with chromium() as browser:
        for device in ({"viewport": {"width": 1280, "height": 900}}, PHONE):
            opened = browser.new_context(**device).new_page()
            asked: list[str] = []
            troubles: list[str] = []
            opened.on("request", lambda request, asked=asked: asked.append(request.url))
            opened.on("console", lambda message, to=troubles: to.append(message.text))
            opened.on("pageerror", lambda error, to=troubles: to.append(str(error)))
            opened.goto(page.as_uri())
            assert asked == [page.as_uri()] and not troubles
            assert opened.title().startswith(HOSTILE.replace("/", "")[:8])
            assert opened.locator("script").count() == 0
            width = device["viewport"]["width"]
            assert opened.evaluate(WIDTH) <= width
            opened.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
            assert opened.locator("details[open]").count() == opened.locator("details").count() > 5
            assert opened.evaluate(WIDTH) <= width  # unfolded, too
            boxes = [one.bounding_box() for one in opened.locator("figure svg:visible").all()]
            assert len(boxes) == len(charts) >= 6
            assert all(box and box["height"] > 100 and box["width"] > 250 for box in boxes)
            assert all(box and box["x"] + box["width"] <= width for box in boxes)
            assert opened.get_by_role("img", name="learning rate").count() == 1
            size = "all => Math.min(...all.map(one => one.getBoundingClientRect().height))"
            assert opened.locator("figure svg:visible text").evaluate_all(size) > 7
            opened.context.close()
