import pytest

from models.config import check_config
from tests.models.config_files import SCHEMA, default_config


def test_the_default_config_is_valid():
    check_config(default_config(), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("carbn", {}, "unknown key `carbn`; did you mean `carbon`?"),
        ("carbon.zoen", "DE", "unknown key `carbon.zoen`; did you mean `zone`?"),
        ("diffusion.colour", 5, "unknown key `diffusion.colour`; known are"),
        ("matrix.resolution", ["64"], "`matrix.resolution.0`: '64' is not of type 'integer'"),
        ("matrix.family", ["unet", "vae"], "`matrix.family.1`: 'vae' is not one of"),
        ("carbon.zone", False, "put quotes around it"),
        ("carbon.pue", 0.9, "`carbon.pue`: 0.9 is less than the minimum of 1"),
        ("images.held_out", 1.5, "`images.held_out`"),
        ("metering.interval_s", 0.01, "`metering.interval_s`"),
        ("schedule.start", "later", "`schedule.start`: 'later' is not one of"),
        ("schedule.deadline_h", 0, "`schedule.deadline_h`"),
        ("schedule.pause_above_g_per_kwh", -1, "`schedule.pause_above_g_per_kwh`"),
        ("budget.action", "halt", "`budget.action`: 'halt' is not one of"),
        ("budget.energy_kwh", 0, "`budget.energy_kwh`"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_line(path, value, told):
    config = default_config()
    *parents, last = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(ValueError, match=r"^config: ") as error:
        check_config(config, SCHEMA)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named():
    config = default_config()
    del config["diffusion"]["patch"]
    with pytest.raises(ValueError, match=r"key `diffusion\.patch` is missing"):
        check_config(config, SCHEMA)
