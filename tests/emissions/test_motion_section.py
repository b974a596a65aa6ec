"""A study of sequences: its words, and its tables of motion."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from emissions.allocation import dims_name, sample_kind
from emissions.charts import Table
from emissions.compare import motion, read_scores
from emissions.motion_section import motion_tables
from emissions.summary import summary_text
from emissions.tables import read_table
from tests.emissions.example_results import Example, build_page, write_example


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return write_example(tmp_path_factory.mktemp("sequences") / "results", moving=True)


@pytest.fixture(scope="module")
def page(example: Example) -> str:
    build_page(example, "Sequences", example.results / "index.html")
    text = (example.results / "index.html").read_text(encoding="utf-8")
    return text[text.index("<main") : text.index("<script>")]


@pytest.fixture(scope="module")
def tables(example: Example) -> list[Table]:
    return motion_tables(read_table(example.tables / "motion.csv"))


def cells(table: Table, row: int) -> dict[str, str]:
    return dict(zip([column["name"] for column in table.columns], table.rows[row], strict=True))


def test_a_sample_with_frames_is_a_sequence() -> None:
    assert [sample_kind(*factors) for factors in ((2, 0), (3, 0), (2, 16), (3, 16))] == [
        "image", "volume", "sequence", "sequence",
    ]  # fmt: skip
    assert [dims_name(3, kind) for kind in ("volume", "sequence")] == ["3D", "3D+t"]


def test_motion_has_a_row_for_each_run_with_all_that_its_file_says(example: Example) -> None:
    table, plan = read_table(example.tables / "motion.csv"), read_table(example.plan)
    assert list(table["run"]) == list(plan["run"])
    for row in table.to_dict("records"):
        score = json.loads((example.results / "runs" / row["run"] / "motion.json").read_text())
        known = {name: value for name, value in score.items() if value not in (None, "")}
        assert {name: row[name] for name in known} == known


def test_a_run_without_motion_is_named(example: Example, tmp_path: Path) -> None:
    plan = read_table(example.plan)
    with pytest.raises(ValueError, match=r"run dit-nano-\S+ has no motion\.json: run audit_motion"):
        motion(plan, {})
    (tmp_path / "motion.json").write_text("{")
    with pytest.raises(ValueError, match=r"motion\.json: not JSON .* run audit_motion again"):
        read_scores([tmp_path / "motion.json"], "audit_motion")


def test_runs_stand_below_the_sequences_that_they_are_held_against(tables: list[Table]) -> None:
    """3D+t: held-out and training sequences as segmented and as known, then the runs."""
    table = tables[1]
    assert table.title == "How sequences move: 3D+t 48²"
    assert [row[0] for row in table.rows] == [
        "2 held out",
        "held out, by formula",
        "6 training",
        "training, by formula",
        "8 of DiT nano, DDIM, 50 steps",
        "8 of DiT nano, DPM-Solver++, 20 steps",
    ]
    held, known, generated = (cells(table, row) for row in (0, 1, 4))
    assert held["Ejection fraction"] == "41 ± 4 %"
    assert held["Coherence"] == "0.50 ± 0.05"
    assert (known["Ejection fraction"], known["Cycle gap"]) == ("46 %", "\N{EN DASH}")
    assert generated["Ejection fraction"] == "31 ± 3 %"
    assert (held["Hearts"], generated["Hearts"]) == ("2", "7")
    assert "Temporal coherence is 0.40 in what was generated and 0.50 in held-out sequences." in table.lead


def test_what_single_slices_cannot_have_is_left_out_and_said(tables: list[Table]) -> None:
    table = tables[0]
    assert [column["name"] for column in table.columns] == ["Sequences", "Coherence", "Cycle gap"]
    assert table.lead.endswith("Not computed: ejection fraction: a single slice has no volume.")
    assert "Slice consistency" not in table.lead


def test_the_page_speaks_of_sequences(page: str) -> None:
    text = re.sub(r"<[^>]+>", "", page)
    for words in (
        "How sequences move: 2D+t 48²",
        "10,000 sequences would take",
        "CO₂e per sequence",
        "Real and generated sequences",
        "CT in 3D+t " + " \N{MULTIPLICATION SIGN} ".join(("6", "48", "48", "12")),
        "Synthetic originals",
        "351 sequences in training",
    ):
        assert words in text, words
    assert not re.search(r"an image|per image|a volume|\b[23]D[ ,·]", text)


def test_the_summary_speaks_of_sequences(example: Example) -> None:
    text = summary_text(example.results)
    assert re.search(r"2D\+t +2 .* sequences\n", text)
    assert "3D+t: trained on 3 patients (3 sequences)" in text
    assert not re.search(r"images|volumes|\b[23]D ", text)
    assert len(text.splitlines()) < 40


def test_prices_are_per_sequence(example: Example) -> None:
    by_zone, by_stage = (read_table(example.tables / f"{name}.csv") for name in ("by_zone", "by_stage"))
    assert "emissions_g_per_image" not in by_zone.columns
    row = by_zone[by_zone["zone"] == "DE"].iloc[0]
    assert row["emissions_g_per_sequence"] == pytest.approx(row["emissions_g"] / 32)
    assert set(by_stage["sample_kind"]) == {"sequence"}


def test_a_study_of_still_images_has_no_table_of_motion(tmp_path: Path) -> None:
    still = write_example(tmp_path / "results", small=True)
    assert not (still.tables / "motion.csv").exists()
    pd.DataFrame({"run": ["left from before"]}).to_csv(still.tables / "motion.csv")
    build_page(still, "Images", tmp_path / "index.html")
    assert "How sequences move" not in (tmp_path / "index.html").read_text(encoding="utf-8")
