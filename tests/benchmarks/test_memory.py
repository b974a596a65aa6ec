import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def memory(monkeypatch):
    """The script as a module, found as Python finds it when it is run: beside `machine`."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import memory

    return memory


def job(memory, variant, image=(64, 64, 32), folder=""):
    return memory.Job(variant, image, steps=1, slab_gb=1.0, threads=1, folder=str(folder))


def test_a_volume_in_slabs_is_metered_from_noise_to_file(memory, tmp_path, capsys):
    memory.run(job(memory, memory.STREAMED, (32, 32, 32), tmp_path))
    figures = json.loads(capsys.readouterr().out)
    assert 0 < figures["energy_low_wh"] <= figures["energy_wh"] <= figures["energy_high_wh"]
    assert set(figures["methods"]) == {"cpu", "gpu", "ram"}
    assert figures["denoising_s"] > 0 < figures["decoding_s"]
    assert (tmp_path / "volume.npy").stat().st_size > 4 * 32**3


def test_rows_are_medians_of_rounds_in_turn(memory, monkeypatch):
    asked = []

    def measure(given):
        asked.append(given.variant)
        rank = 1 + asked.count(given.variant)  # 2, 3, 4 in the three rounds
        wh = rank * (1.0 if given.variant == memory.PLAIN else 0.5)
        figures = dict.fromkeys(memory.MEDIANS, float(rank)) | {"energy_wh": wh}
        return figures | {"methods": {"cpu": "rapl", "gpu": "none", "ram": "rapl"}}

    monkeypatch.setattr(memory, "measure", measure)
    rows = memory.compared([job(memory, variant) for variant in (memory.PLAIN, memory.STREAMED)], 3)
    assert asked == [memory.PLAIN, memory.STREAMED] * 3
    assert [row["energy_wh"] for row in rows] == [3.0, 1.5]
    assert [(row["energy_least_wh"], row["energy_most_wh"]) for row in rows] == [(2.0, 4.0), (1.0, 2.0)]
    assert [row["energy_ratio"] for row in rows] == [1.0, 0.5]
    assert rows[0]["predicted_gb"] is None is rows[0]["files_gb"]
    assert "0.50" in memory.line_of(rows[1])
    (alone,) = memory.compared([job(memory, memory.STREAMED)], 1)
    assert alone["energy_ratio"] is None


def test_the_folder_is_said_to_need_what_slabs_keep(memory):
    """The help of --folder says 8.6 GB."""
    assert memory.files_gb(job(memory, memory.STREAMED, (512, 512, 256))) == pytest.approx(8.6, abs=0.05)
    assert memory.files_gb(job(memory, memory.WHOLE, (512, 512, 256))) is None
