"""The page: whole, self-contained, and true to the tables."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from emissions.dashboard import MAX_BYTES
from emissions.grid.intensity import CREDIT
from emissions.pricing import operational_emissions_g
from emissions.tables import read_table
from tests.emissions.example_results import Example, build_page, write_example

VOID = {"meta", "link", "img", "br", "input", "rect", "path", "circle"}


class Page(HTMLParser):
    """Collects what the tests ask of a page; fails on elements that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("id")))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop()[0] == tag, f"{tag} closes out of order"

    def handle_data(self, data: str) -> None:
        tag, identifier = self._open[-1] if self._open else ("", None)
        if tag == "script" and identifier:
            self.scripts[identifier] = self.scripts.get(identifier, "") + data
        elif tag not in ("script", "style"):
            self.texts.append(data)

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.attributes if name == tag]


def build(example: Example, out: Path) -> str:
    build_page(example, "A <b>study</b>", out)
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return write_example(tmp_path_factory.mktemp("study") / "results")


@pytest.fixture(scope="module")
def text(example: Example) -> str:
    return build(example, example.results / "dashboard" / "index.html")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def data(page: Page) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} breaks JSON.parse")

    return json.loads(page.scripts["page-data"], parse_constant=refuse)


def test_nothing_is_fetched(page: Page) -> None:
    for tag, attributes in page.attributes:
        for name in ("src", "href", "srcset", "action"):
            target = attributes.get(name) or ""
            assert target == "" or target.startswith(("data:", "#")), (tag, name, target[:80])
    assert not page.find("iframe")


def test_the_page_fits_a_mail(text: str) -> None:
    assert len(text.encode()) < MAX_BYTES


def test_titles_are_escaped_and_the_page_says_its_language(page: Page, text: str) -> None:
    assert page.find("html")[0]["lang"] == "en"
    assert "A &lt;b&gt;study&lt;/b&gt;" in text and "A <b>study</b>" not in text


def test_every_figure_has_a_named_place(page: Page, data: dict[str, Any]) -> None:
    places = {a["id"]: a for a in page.find("div") if (a.get("id") or "").startswith("plot-")}
    assert {f"plot-{name}" for name in data["figures"]} == set(places)
    for place in places.values():
        assert place["role"] == "group" and len(place["aria-label"] or "") > 20
    assert all(image.get("alt") for image in page.find("img"))
    assert all(select.get("id") for select in page.find("select"))


def test_the_topology_is_in_the_page(page: Page) -> None:
    topology = json.loads(page.scripts["topology"])
    assert len(topology["objects"]["countries"]["geometries"]) > 170


def test_all_zones_can_be_chosen(page: Page, data: dict[str, Any], example: Example) -> None:
    zones = data["price"]["zones"]
    by_zone = read_table(example.tables / "by_zone.csv")
    assert len(zones) == 352 == sum("value" in option for option in page.find("option")) - 14
    assert zones["NA"]["name"] == "Namibia"
    assert len(zones["DE"]["months"]) == 12 and zones["AE"]["months"] is None
    assert {zone: entry["year"] for zone, entry in zones.items()} == pytest.approx(
        dict(zip(by_zone["zone"], by_zone["carbon_intensity_g_per_kwh"], strict=True)), abs=0.06
    )
    assert "United Arab Emirates (AE), annual value only" in " ".join(page.texts)


def test_prices_in_the_page_agree_with_the_tables(data: dict[str, Any], example: Example) -> None:
    price = data["price"]
    priced, by_zone = (read_table(example.tables / f"{name}.csv") for name in ("priced", "by_zone"))
    assert price["as_run"]["total_g"] == pytest.approx(priced["emissions_g"].sum())
    assert sum(price["phases_kwh"].values()) == pytest.approx(price["energy_kwh"])
    assert sum(price["as_run"]["phases_g"].values()) == pytest.approx(price["as_run"]["total_g"])
    row = by_zone.set_index("zone").loc["FR"]
    grams = operational_emissions_g(price["energy_kwh"], price["pue"], price["zones"]["FR"]["year"])
    assert grams == pytest.approx(row["emissions_g"], rel=0.002)


def test_patients_and_credits_are_said(page: Page) -> None:
    words = " ".join(" ".join(page.texts).split())
    assert "4 patients in training, 1 held out" in words
    assert "Left out: petct" in words
    assert CREDIT in words and "made-up example" in words
    assert "FID (EfficientNet-Lite0)" in words and not re.search(r"FID(?! \(EfficientNet-Lite0\))", words)


def test_estimates_and_warnings_are_said(page: Page) -> None:
    words = " ".join(page.texts)
    assert "estimated" in words and "model:load x TDP" in words
    assert "no RAPL on this machine" in words


def test_waste_intervals_and_overheads_are_said(page: Page) -> None:
    words = " ".join(" ".join(page.texts).split())
    assert "4 attempts ended early" in words and "of it was wasted on attempts that ended early" in words
    assert "1 failed, 1 interrupted, 2 killed" in words
    assert "combined in quadrature" in words and "power supply, fans, board" in page.scripts["page-data"]
    assert "Overheads" in words and "Idle baseline" in words and "beside: the recorder and CodeCarbon" in words
    assert re.search(r"CodeCarbon's totals are 1\.\d times the jobs' own energy", words)


def test_a_study_without_waste_says_so(tmp_path: Path) -> None:
    words = " ".join(Page(build(write_example(tmp_path / "results", small=True), tmp_path / "index.html")).texts)
    assert "no attempt ended early" in words and "nothing was wasted" in words
    assert "attempts ended early" not in words and "wasted on" not in words


def test_zone_with_an_annual_value_only_says_so(tmp_path: Path) -> None:
    example = write_example(tmp_path / "results", zone="AE", small=True)
    assert "which has an annual value only" in build(example, tmp_path / "index.html")


def test_a_zone_without_an_annual_value_can_be_the_study_zone(tmp_path: Path) -> None:
    example = write_example(tmp_path / "results", zone="US-HI-OA", small=True)
    price = json.loads(Page(build(example, tmp_path / "index.html")).scripts["page-data"])["price"]
    assert price["zone"] == "US-HI-OA" and len(price["zones"]) == 353


def test_the_same_tables_give_the_same_page(example: Example, text: str, tmp_path: Path) -> None:
    assert build(example, tmp_path / "again.html") == text


def test_bad_inputs_are_named_and_leave_no_page(tmp_path: Path) -> None:
    example, out = write_example(tmp_path / "results", small=True), tmp_path / "index.html"
    example.pictures[0].write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"samples\.png: not a picture"):
        build(example, out)
    example.cohorts[0].write_text("{}")
    with pytest.raises(ValueError, match=r"cohort\.json: has no cohort"):
        build(example, out)
    (example.tables / "by_zone.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"by_zone\.csv"):
        build(example, out)
    assert not out.exists()
