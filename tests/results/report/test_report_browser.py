"""The report as its reader has it: opened from disk in headless Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.random_boards import made_board, with_consistency

from offbench.results.report.charts import charts_payload
from offbench.results.report.page import page
from offbench.results.report.payload import board_payload, runs_payload

TASKS = ["toy/point-medium-v0", "toy/point-large-v0", "toy/plane-v0"]
ENTRIES = ["iql", "bc", "iql+nstep3", "<img src=x onerror=alert(1)>"]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)

if CHROMIUM is None:
    pytest.skip("no chromium on the PATH", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    """The address of a report on disk."""
    board, episodes, runs, records = with_consistency(made_board(ENTRIES, TASKS, monitored=True))
    parts = {
        "evidence": charts_payload(board, episodes, runs, records),
        "runs": runs_payload(board, episodes, records),
    }
    path = tmp_path_factory.mktemp("report") / "toy.html"
    path.write_text(page(board_payload(board, runs), parts, "0" * 32), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Reader:
    """A page of the browser, and all that it complained of or asked for."""

    def __init__(self, browser: Any, address: str, before: str = "", **options: Any):
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, **options}
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.add_init_script(before)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("a dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.said.append(request.url))
        self.page.goto(address)
        # the file itself
        assert self.said.pop(0) == address

    def entries(self) -> list[str]:
        return self.page.eval_on_selector_all(
            "#table tbody tr", "rows => rows.map(r => r.dataset.entry)"
        )

    def is_wide(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > innerWidth")

    def requests(self) -> list[str]:
        """What is asked of anything but the page itself; pictures made in it are data."""
        return [said for said in self.said if not said.startswith(("data:", "blob:"))]


@pytest.fixture
def reader(browser, report) -> Iterator[Reader]:
    # so low that no chart is near it
    opened = Reader(browser, report, viewport={"width": 1280, "height": 300})
    yield opened
    assert opened.requests() == []
    opened.context.close()


@pytest.mark.slow
def test_how_far_seeds_are_apart_is_a_column_and_a_line_of_a_cell(reader):
    page = reader.page
    head = page.locator("#table thead [data-key=consistency]")
    head.click()
    # the nearest first; those that were not measured last
    assert reader.entries()[:2] == ["bc", "iql"]
    last = page.locator("#table tbody tr:nth-child(2) td").last
    assert last.inner_text().startswith("0.200 [0.200, 0.200]")
    page.locator("#table tbody tr:nth-child(2) button.score").first.click()
    page.get_by_text("apart: action 0.200 [0.200, 0.200], js 0.500 [0.500, 0.500]").wait_for()
    page.keyboard.press("Escape")
    page.locator("details:has(#caption) summary").click()
    assert page.get_by_text("all seeds learned one policy").is_visible()


@pytest.mark.slow
def test_the_table_sorts_either_way_and_says_so(reader):
    page = reader.page
    assert reader.entries()[0] == ENTRIES[3]
    assert page.locator("#table [aria-sort]").count() == 0
    page.get_by_role("button", name="Entry", exact=True).click()
    assert reader.entries() == sorted(ENTRIES)
    assert page.locator('#table [aria-sort="ascending"]').inner_text().startswith("Entry")
    page.get_by_role("button", name="Entry", exact=True).click()
    assert reader.entries() == sorted(ENTRIES, reverse=True)
    head = page.locator("#table thead button[data-key=task-0]")
    head.click()
    column = "rows => rows.map(r => parseFloat(r.cells[3].innerText))"
    shown = page.eval_on_selector_all("#table tbody tr", column)
    assert shown == sorted(shown, reverse=True)


def test_the_table_is_filtered_by_entry_and_task_and_columns_are_chosen(reader):
    page = reader.page
    page.locator("#filter-entry").fill("iql")
    assert reader.entries() == ["iql+nstep3", "iql"]
    page.locator("#filter-task").fill("point")
    assert page.locator("#table thead [data-key^=task]").count() == 2
    assert page.locator("#count").inner_text() == "2 of 4 entries, 2 of 3 tasks"
    page.locator("#columns summary").click()
    page.get_by_label("Commit").check()
    assert page.locator("#table thead [data-key=commit]").count() == 1
    page.get_by_role("button", name="Reset").click()
    assert len(reader.entries()) == 4 and page.locator("#table thead [data-key^=task]").count() == 3


def test_a_score_leads_to_its_seeds_episodes_settings_and_command(reader):
    page = reader.page
    words = page.locator("button.score.best").first.get_attribute("aria-label")
    assert words.endswith(", not told from the best")
    page.locator("tr[data-entry=iql] button.score").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("seed 0", exact=True).first.wait_for()
    assert "iql on toy/point-medium-v0" in dialog.locator("h2").inner_text()
    dialog.get_by_role("button", name="3 episodes of seed 1").click()
    assert dialog.locator("#episodes-1 tbody tr").count() == 3
    command = dialog.locator("#command")
    assert "offbench run method=iql" in command.inner_text()
    assert "'seeds=[0,1,2]'" in command.inner_text()
    dialog.locator("select").select_option("1")
    assert "'seeds=[1]'" in command.inner_text()
    assert dialog.get_by_text("suite toy").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_everything_is_reached_with_the_keyboard(reader):
    page = reader.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    focused = "document.activeElement.dataset.cell ?? document.activeElement.id"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('score')"):
            break
    first = page.evaluate(focused)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert int(page.evaluate(focused)) == int(first) + 1 + len(TASKS)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    here = page.evaluate(focused)
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_text("Run it again").wait_for()
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == here


def test_charts_are_drawn_when_they_are_looked_at_and_have_their_numbers_as_tables(reader):
    page = reader.page
    # plotly.js is inflated for the first chart that comes near the window
    assert (
        page.locator(".chart figure").count() == 0 and page.evaluate("typeof Plotly") == "undefined"
    )
    page.set_viewport_size({"width": 1280, "height": 900})
    charts = page.locator(".chart")
    for i in range(charts.count()):
        charts.nth(i).scroll_into_view_if_needed()
        charts.nth(i).locator("figure").wait_for()
    page.wait_for_function("document.querySelectorAll('.plot .main-svg').length >= 6")
    assert page.locator(".chart .plot").count() == page.locator(".chart .plot[role=img]").count()
    curves = page.locator("[data-chart=curves]")
    assert curves.locator(".cartesianlayer > .subplot").count() == len(ENTRIES)
    curves.get_by_text("The numbers as a table").click()
    # the table is written when the browser tells that it was opened, a moment later
    rows = curves.locator("tbody tr")
    rows.first.wait_for()
    assert rows.count() == 2 * len(ENTRIES)
    many = "Array(50).fill({ entry: 'iql', x: [1], y: [1], low: [0], high: [2] })"
    axes = "Object.keys(panelChart(MANY, ['', ''], 1000).layout).filter((k) => /^yaxis/.test(k))"
    assert len(page.evaluate(axes.replace("MANY", many))) == 20
    # names of neighbours stand on different sides of their marks, and within the chart
    near = "[{ entry: 'iql+nstep10', x: 5, y: 28.6 }, { entry: 'iql+aw', x: 4.9, y: 28.4 }, { entry: 'bc', x: 2, y: 5 }]"
    assert page.evaluate(f"namePlaces({near}, 1000, 370, false)") == [
        "top center",
        "middle left",
        "middle right",
    ]
    assert (
        page.locator("[data-chart=chunks]").inner_text().endswith("No policy here executes chunks.")
    )
    with page.expect_download() as download:
        page.locator("[data-chart=ranks]").get_by_role("button", name="SVG").click()
    assert "<svg" in Path(download.value.path()).read_text()


@pytest.mark.slow
def test_two_entries_are_compared_setting_by_setting(reader):
    page = reader.page
    page.locator("#compare").scroll_into_view_if_needed()
    page.locator("#compare-a").select_option(label="iql")
    page.locator("#compare-b").select_option(label="bc")
    page.locator("#compare-out td", has_text="0.0001").first.wait_for()
    assert page.locator("#compare-out tbody tr").count() == 1
    page.locator("#compare-all").check()
    page.locator("#compare-out tr.differs").wait_for()
    assert page.locator("#compare-out tbody tr").count() > 5


@pytest.mark.slow
def test_it_is_dark_where_the_reader_wants_it(browser, report):
    dark = Reader(browser, report, color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert dark.page.evaluate(paper) == "rgb(22, 24, 27)"
    dark.page.locator("#theme").click()
    assert dark.page.locator("#theme").inner_text() == "Light"
    assert dark.page.evaluate(paper) == "rgb(253, 252, 249)"
    dark.page.locator("#theme").click()
    assert dark.page.evaluate(paper) == "rgb(22, 24, 27)"
    assert dark.requests() == []
    dark.context.close()


@pytest.mark.slow
def test_on_a_phone_the_table_scrolls_in_its_box_and_the_page_does_not(browser, report):
    phone = Reader(browser, report, viewport={"width": 390, "height": 844})
    page = phone.page
    assert not phone.is_wide()
    assert page.evaluate(
        "scroll => { const s = document.getElementById('scroll'); return s.scrollWidth > s.clientWidth }"
    )
    left = "document.querySelector('#table tbody th').getBoundingClientRect().left"
    before = page.evaluate(left)
    page.evaluate("document.getElementById('scroll').scrollLeft = 300")
    assert page.evaluate(left) == before
    charts = page.locator(".chart")
    for i in range(charts.count()):
        charts.nth(i).scroll_into_view_if_needed()
        charts.nth(i).locator("figure").wait_for()
    page.wait_for_function("document.querySelectorAll('.plot .main-svg').length >= 6")
    page.locator("button.score").first.click()
    page.get_by_role("dialog").get_by_text("Run it again").wait_for()
    assert not phone.is_wide() and phone.requests() == []
    phone.context.close()


@pytest.mark.slow
def test_fifty_entries_on_fifty_tasks_are_painted_soon(browser, tmp_path):
    tasks = [f"d4rl/task-number-{i}-medium-replay-v2" for i in range(50)]
    names = [f"method-{i}+nstep{i % 7}" for i in range(50)]
    board, episodes, runs, records = made_board(names, tasks, n_seeds=10, n_episodes=10, reps=50)
    parts = {"runs": runs_payload(board, episodes, records), "evidence": {}}
    (tmp_path / "big.html").write_text(page(board_payload(board, runs), parts, "0" * 32))
    count = "document.querySelectorAll('#table tbody tr').length"
    watch = f"new MutationObserver(() => {{ window.first ||= {count}; }})"
    opened = Reader(
        browser,
        (tmp_path / "big.html").as_uri(),
        before=f"{watch}.observe(document, {{ childList: true, subtree: true }});",
    )
    opened.page.locator("#table tbody tr").nth(49).wait_for()
    # a screenful of rows first, then the others
    assert opened.page.evaluate("window.first") == 16
    paints = opened.page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    assert paints < 2000
    opened.page.locator("button.score").first.click()
    opened.page.get_by_role("dialog").get_by_text("Run it again").wait_for()
    opened.context.close()
