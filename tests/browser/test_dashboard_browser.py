"""The dashboard in a real browser, with the network off."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from emissions.tables import read_table
from tests.emissions.example_results import Example, build_page, write_example
from tests.needs import cannot

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRAWN = "window.drawn === Object.keys(page.figures).length"


@dataclass
class Session:
    """An open page and what it complained about."""

    page: Page
    troubles: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        cannot("no Chromium on PATH; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    example = write_example(tmp_path_factory.mktemp("study") / "results")
    page = example.results / "dashboard" / "index.html"
    build_page(example, "A study", page)
    return example


@pytest.fixture(scope="module", params=[1280, 400])
def session(browser: Browser, example: Example, request: pytest.FixtureRequest) -> Iterator[Session]:
    context = browser.new_context(offline=True, viewport={"width": request.param, "height": 900})
    session = Session(context.new_page())
    page, troubles = session.page, session.troubles
    page.on("console", lambda message: troubles.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("request", lambda sent: None if sent.url.startswith(("file:", "data:")) else troubles.append(sent.url))
    page.goto((example.results / "dashboard" / "index.html").as_uri())
    page.wait_for_function(DRAWN)
    yield session
    context.close()


def test_everything_is_drawn_without_a_network(session: Session, tmp_path: Path) -> None:
    page = session.page
    plots = page.locator(".plot")
    assert plots.count() >= 13
    for index in range(plots.count()):
        drawing = plots.nth(index).locator(".main-svg").first
        box = drawing.bounding_box()
        assert box is not None and box["width"] > 150 and box["height"] > 80
    assert page.evaluate("[...document.images].every(image => image.complete || image.loading === 'lazy')")
    page.screenshot(path=tmp_path / "dashboard.png", full_page=True)
    assert (tmp_path / "dashboard.png").stat().st_size > 50_000
    assert session.troubles == []


def test_the_page_does_not_scroll_sideways(session: Session) -> None:
    assert session.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_axis_titles_are_inside_their_plots(session: Session) -> None:
    outside = session.page.evaluate(
        """[...document.querySelectorAll(".plot")].flatMap(plot => {
             const frame = plot.getBoundingClientRect();
             return [...plot.querySelectorAll(".xtitle, .ytitle, .xtick text, .ytick text")]
               .filter(text => { const box = text.getBoundingClientRect();
                                 return box.left < frame.left - 2 || box.right > frame.right + 2; })
               .map(text => plot.id + ": " + text.textContent);
           })"""
    )
    assert outside == []


def test_numbers_of_axes_stand_upright(session: Session) -> None:
    turned = session.page.evaluate(
        """[...document.querySelectorAll(".plot .xtick text")]
             .filter(text => /rotate\\((?!0\\b)/.test(text.getAttribute("transform") || ""))
             .map(text => text.closest(".plot").id + ": " + text.textContent)"""
    )
    assert turned == []


def test_land_is_in_its_country_and_the_sea_in_none(session: Session) -> None:
    """A ring the wrong way round fills the globe while its path looks right: ask which paths hold a point."""
    hits = session.page.evaluate(
        """() => {
             const map = document.getElementById("plot-world");
             const projection = map._fullLayout.geo._subplot.projection;
             const paths = [...map.querySelectorAll(".choroplethlayer path")];
             const holding = (point) => {
               const [x, y] = projection(point);
               const found = paths.filter(path => path.isPointInFill(new DOMPoint(x, y)));
               return found.map(path => path.__data__.loc ?? path.__data__.id);
             };
             return {
               count: paths.length,
               sea: [[-140, -30], [80, -35], [-35, 30], [-160, 20]].flatMap(holding),
               germany: holding([10.5, 51.0]),
               brazil: holding([-52.0, -10.0]), namibia: holding([17.0, -22.0]),
             };
           }"""
    )
    assert hits["count"] > 170
    assert hits["sea"] == []
    assert hits["germany"] == ["DEU", "DEU"]  # the country, and the ring round the study's zone
    assert hits["brazil"] == ["BRA"] and hits["namibia"] == ["NAM"]
    assert session.page.locator("#plot-world path.point").count() == 170


def test_another_zone_and_month_reprice_the_totals(session: Session, example: Example) -> None:
    page = session.page
    by_zone = read_table(example.tables / "by_zone.csv").set_index("zone")
    by_season = read_table(example.tables / "by_season.csv").set_index(["zone", "month"])

    def shown_g() -> float:
        number, unit = page.locator("#card-emissions").inner_text().split()
        return float(number.replace(",", "")) * {"g": 1.0, "mg": 1e-3}[unit]

    as_run = shown_g()
    page.select_option("#zone-select", "FR")
    assert shown_g() == pytest.approx(by_zone.loc["FR", "emissions_g"], rel=0.01)
    page.select_option("#month-select", "7")
    assert shown_g() == pytest.approx(by_season.loc[("FR", 7), "emissions_g"], rel=0.01)
    page.select_option("#zone-select", "AE")  # has no months: falls back to the year and says so
    assert page.locator("#month-select").input_value() == "year"
    assert "annual value only" in page.locator("#price-note").inner_text()
    assert shown_g() == pytest.approx(by_zone.loc["AE", "emissions_g"], rel=0.01)
    page.click("#price-reset")
    assert shown_g() == as_run and page.locator("#zone-select").input_value() == "DE"
    assert session.troubles == []


def test_selectors_work_by_keyboard(session: Session) -> None:
    page = session.page
    page.focus("#zone-select")
    page.keyboard.type("Norw")
    assert page.locator("#zone-select").input_value().startswith("NO")
    assert page.locator("#price-note").inner_text().startswith("Norway")
