"""The page of `fitb serve` in a real browser, as people use it."""

from __future__ import annotations

import json

import pytest
from browser import chromium
from playwright.sync_api import expect
from serving import serving

PHONE = {"width": 360, "height": 640}
SENTENCE = "Returns a ___ of ___ strings."
OPTIONS = ".candidates [role=option]"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server(teacher, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("page"), str(teacher)) as served:
        yield served


@pytest.fixture
def page(browser, server):
    """The page, freshly opened; nothing it does may fail or leave the server."""
    context = browser.new_context()
    opened = context.new_page()
    errors: list[str] = []
    asked: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(server.url)
    yield opened
    context.close()
    assert not errors and all(url.startswith(f"{server.url}/") for url in asked)


def fill(page, sentence):
    page.get_by_label("A sentence with something missing").fill(sentence)
    page.get_by_role("button", name="Fill", exact=True).click()


def answered_with(page, content, status=200):
    """Let the page see this in place of the server's answers."""
    page.route("**/v1/fill", lambda route: route.fulfill(status=status, json=content))


def shown(page):
    return page.locator(".sentence").inner_text()


def test_a_sentence_is_filled_and_its_blanks_stand_in_place(page):
    fill(page, SENTENCE)
    blanks = page.locator(".blank")
    expect(blanks).to_have_count(2)
    first, second = blanks.all_inner_texts()
    assert shown(page) == f"Returns a {first} of {second} strings."
    expect(page.get_by_role("status")).to_contain_text("ways to fill it")
    assert page.locator(".others li").count() >= 3


def test_a_candidate_that_is_chosen_stands_in_place_and_what_agrees_comes_first(page):
    fill(page, SENTENCE)
    blank = page.locator(".blank").nth(1)
    before = blank.inner_text()
    blank.click()
    options = page.locator(OPTIONS)
    expect(options.first).to_be_visible()
    assert "%" in options.first.locator(".share").inner_text()
    words = options.locator(".words").all_inner_texts()
    chosen = next(word for word in words if word != before)
    options.nth(words.index(chosen)).click()
    expect(page.get_by_role("listbox")).to_have_count(0)
    expect(page.locator(".blank").nth(1)).to_have_text(chosen)
    assert shown(page).endswith(f"of {chosen} strings.")
    others = page.locator(".others .words").all_inner_texts()
    agree = [words.split("\u00b7")[1].strip() == chosen for words in others]
    assert agree == sorted(agree, reverse=True)


def test_another_filling_is_taken_as_a_whole(page):
    fill(page, SENTENCE)
    other = page.locator(".others button").nth(1)
    sentence = str(other.get_attribute("aria-label")).rpartition(" strings.")[0] + " strings."
    other.click()
    expect(page.locator(".sentence")).to_have_text(sentence)


def test_it_works_by_keyboard_alone(page):
    page.keyboard.press("ControlOrMeta+a")  # the text has the focus from the start
    page.keyboard.type("a ___ b")
    page.keyboard.press("Control+Enter")
    blank = page.locator(".blank")
    expect(blank).to_be_visible()
    for _ in range(10):
        if page.evaluate("document.activeElement.className") == "blank":
            break
        page.keyboard.press("Tab")
    expect(blank).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    before = blank.inner_text()
    page.keyboard.press("Enter")
    box = page.get_by_role("listbox")
    expect(box).to_be_focused()
    expect(blank).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Escape")
    expect(box).to_have_count(0)
    expect(blank).to_be_focused()
    assert blank.inner_text() == before
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    active = str(box.get_attribute("aria-activedescendant"))
    last = page.locator(OPTIONS).last
    assert last.get_attribute("id") == active
    chosen = last.locator(".words").inner_text()
    page.keyboard.press("Enter")
    expect(blank).to_have_text(chosen)
    expect(blank).to_be_focused()
    assert chosen != before


@pytest.mark.parametrize(
    ("sentence", "said"),
    [("Nothing is missing.", "has no blank"), ("word " * 5000 + "___", "20000 characters")],
)
def test_what_is_wrong_is_said_in_words(page, sentence, said):
    fill(page, sentence)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(said)
    assert "texts[" not in alert.inner_text()
    fill(page, "a ___")
    expect(alert).to_have_count(0)
    expect(page.locator(".blank")).to_be_visible()


def test_a_server_that_is_gone_or_busy_is_said_in_words(page):
    page.route("**/v1/fill", lambda route: route.abort())
    fill(page, "a ___")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    answered_with(page, {"error": "full"}, status=503)
    fill(page, "a ___")
    expect(page.get_by_role("alert")).to_contain_text("busy")


def test_a_token_is_asked_for_and_sent(page):
    sent: list[str] = []

    def guard(route):
        sent.append(route.request.headers.get("authorization", ""))
        if sent[-1] == "Bearer open-sesame":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": "a token is required"})

    page.route("**/v1/fill", guard)
    fill(page, "a ___")
    expect(page.get_by_role("alert")).to_contain_text("token")
    page.get_by_label("Token of this server").fill("open-sesame")
    page.keyboard.press("Enter")
    expect(page.locator(".blank")).to_be_visible()
    assert sent == ["", "Bearer open-sesame"]


def test_markup_in_a_text_or_an_answer_stays_text(page):
    markup = "<img src=x onerror='document.title=1'><b>"
    answer = {"text": markup, "begin": 2, "end": 2 + len(markup), "pieces": [], "probability": 0.5}
    filling = {
        "sentence": f"\U0001f600 {markup} {markup}",
        "answers": [answer],
        "probability": 0.5,
        "log_probability": -0.7,
        "score": -0.7,
    }
    one = {"blanks": [{"begin": 2, "end": 5, "kind": "word"}], "fillings": [filling]}
    answered_with(page, {"model": "student", "texts": [one]})
    fill(page, f"\U0001f600 ___ {markup}")
    expect(page.locator(".blank")).to_have_text(markup)
    page.locator(".blank").click()
    expect(page.locator(OPTIONS)).to_have_count(1)
    assert shown(page) == filling["sentence"]
    assert page.locator("main img, main b").count() == 0
    assert page.title() == "Fill in the blank"


def test_no_answer_is_no_empty_page(page):
    one = {"blanks": [{"begin": 0, "end": 3, "kind": "word"}], "fillings": []}
    answered_with(page, {"model": "student", "texts": [one]})
    fill(page, "___")
    expect(page.locator("article")).to_contain_text("No answer")


def test_student_and_teacher_stand_side_by_side(page):
    ready = {"status": "ready", "models": ["student", "teacher"], "token_required": False}
    asked: list[str] = []

    def student_alone(route):
        body = route.request.post_data_json
        asked.append(body["model"])
        route.continue_(post_data=json.dumps(body | {"model": "student"}))

    page.route("**/healthz", lambda route: route.fulfill(json=ready))
    page.route("**/v1/fill", student_alone)
    page.reload()
    expect(page.locator("#models")).to_contain_text("side by side")
    fill(page, "a ___")
    expect(page.locator("article h2")).to_have_text(["student", "teacher"])
    assert sorted(asked) == ["student", "teacher"]
    left, right = (box.bounding_box() for box in page.locator("article").all())
    assert left and right and left["x"] + left["width"] <= right["x"]


INSIDE = """() => {
    const list = document.querySelector("[role=listbox]");
    const box = list && list.getBoundingClientRect();
    return box && box.width > 0 && box.left >= 0 && box.right <= window.innerWidth;
}"""


def test_it_fits_a_phone(browser, server):
    context = browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.goto(server.url)
    fill(page, f"{SENTENCE} {'internationalisation' * 3} ___")
    expect(page.locator(".blank").first).to_be_visible()
    page.locator(".blank").last.tap()
    expect(page.locator(OPTIONS).first).to_be_visible()
    page.wait_for_load_state("networkidle")  # more candidates may come, into a new list
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.wait_for_function(INSIDE)  # a list that is being replaced has no box
    sizes = "[...document.querySelectorAll('textarea, select, input')]"
    assert page.evaluate(
        f"{sizes}.every((one) => parseFloat(getComputedStyle(one).fontSize) >= 16)"
    )
    taps = [
        one.bounding_box() for one in page.locator("button:visible, summary, [role=option]").all()
    ]
    assert all(tap and tap["height"] >= 43.5 for tap in taps)
    context.close()


def test_dark_follows_the_system(browser, server):
    grounds = []
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(server.url)
        ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        grounds.append(sum(int(part) for part in ground[4:-1].split(",")) / 3)
        context.close()
    assert grounds[0] > 200 and grounds[1] < 60


def test_the_page_may_load_nothing_from_elsewhere(server):
    _, _, headers = server.ask("/")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
