"""The built pages in a real browser: offline, on a phone, on paper, in the dark, by keyboard.

Skipped where Playwright, its axe package or Chromium is not installed, or the pages are not built:

    apt-get install chromium; make render
    pip install --no-deps playwright axe-playwright-python pyee greenlet
"""

import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest

HTML = Path(__file__).parent.parent / "_build" / "html"
PAGES = sorted(HTML.glob("*.html")) + sorted(HTML.glob("notebooks/*.html"))
PAGES += sorted(HTML.glob("book/*.html"))
MADE = ("index", "search", "genindex", "py-modindex")  # by Sphinx; the index sends on to home
PAGES = [page for page in PAGES if page.stem not in MADE]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WEIGHT = 2 * 2**20  # bytes of all that a page loads, uncompressed

api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not PAGES, reason="the pages are not built; make render"),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as driver:
        flags = ["no-sandbox", "allow-file-access-from-files", "disable-background-networking"]
        running = driver.chromium.launch(
            executable_path=CHROMIUM, args=[f"--{flag}" for flag in flags]
        )
        yield running
        running.close()


@pytest.fixture
def tab(browser):
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    yield opened
    opened.close()


def visit(tab, page: Path) -> None:
    tab.goto(page.as_uri())
    tab.wait_for_load_state("load")


@each_page
def test_a_page_needs_no_network_and_says_no_error(tab, page):
    asked, errors = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("requestfailed", lambda request: errors.append(request.url))
    tab.on("console", lambda said: said.type == "error" and errors.append(said.text))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    visit(tab, page)
    if tab.locator(".math").count():
        tab.wait_for_selector("mjx-container", state="attached")
        assert not tab.locator("mjx-merror").count()
    assert not errors
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    files = {url.split("?")[0] for url in asked if url.startswith("file:")}
    size = sum(Path(unquote(url.removeprefix("file://"))).stat().st_size for url in files)
    assert size <= WEIGHT, f"{size / 1e6:.1f} MB"


@each_page
def test_a_page_fits_a_phone_and_paper(tab, page):
    tab.set_viewport_size({"width": 390, "height": 800})
    visit(tab, page)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.emulate_media(media="print")
    tab.set_viewport_size({"width": 720, "height": 1000})  # A4 without margins
    cut = tab.evaluate("""() => [...document.querySelectorAll("article *")].filter(e =>
        e.getClientRects().length && !e.closest(".math, .visually-hidden") &&
        getComputedStyle(e).overflowX !== "visible" && e.scrollWidth > e.clientWidth + 2 &&
        e.clientWidth > 1).map(e => `${e.tagName}.${e.className} ${e.textContent.slice(0, 40)}`)
        """)
    assert not cut


@pytest.mark.parametrize("width, least, most", [(1280, 0.9, 1.0), (390, 1.0, 1.08)])
@each_page
def test_a_figure_fills_the_column(tab, page, width, least, most):
    """On a phone it takes the margins, too."""
    tab.set_viewport_size({"width": width, "height": 800})
    visit(tab, page)
    shares = tab.evaluate(
        """[...document.querySelectorAll('.cell_output img, .ece-slider img')]
           .filter(img => img.offsetWidth)
           .map(img => img.offsetWidth / img.closest('section').offsetWidth)"""
    )
    assert all(least <= share <= most for share in shares), shares


@pytest.mark.parametrize("mode", ["light", "dark"])
@each_page
def test_a_page_can_be_read_by_everyone(tab, page, mode):
    tab.emulate_media(color_scheme=mode)
    visit(tab, page)
    tab.evaluate("document.querySelectorAll('mjx-container').forEach(e => e.remove())")
    found = axe.Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [f"{rule['id']}: {rule['nodes'][0]['html'][:160]} ({len(rule['nodes'])})"
               for rule in found if rule["impact"] in ("serious", "critical")]  # fmt: skip
    assert not serious


@pytest.mark.parametrize("chapter, count", [("02_ffn", 1), ("03_scoring", 1), ("21_places", 2)])
def test_a_slider_shows_one_drawing_at_a_time(tab, chapter, count):
    (page,) = HTML.glob(f"notebooks/{chapter}*.html")
    visit(tab, page)
    boxes = tab.locator(".ece-slider")
    assert boxes.count() == count
    for i in range(count):
        box = boxes.nth(i)
        begin = box.locator("img:visible").get_attribute("alt")
        box.locator("input").focus()
        tab.keyboard.press("ArrowRight")
        assert box.locator("img:visible").count() == 1
        assert box.locator("img:visible").get_attribute("alt") != begin
        value = box.locator("input").get_attribute("aria-valuetext")
        assert value and value == box.locator("output").inner_text()


def test_a_slider_is_a_picture_without_script(browser):
    tab = browser.new_context(java_script_enabled=False).new_page()
    (page,) = HTML.glob("notebooks/02_ffn*.html")
    visit(tab, page)
    assert tab.locator(".ece-slider img:visible").count() == 1
    assert not tab.locator(".ece-slider input:visible").count()


def test_the_search_finds_anchor(tab):
    tab.goto((HTML / "search.html").as_uri() + "?q=anchor")
    tab.wait_for_selector("ul.search li a", timeout=10_000)
    assert tab.locator("ul.search li a").count() > 2
