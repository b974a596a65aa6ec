from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.plan import COLUMNS, FACTORS, expand_matrix, make_plan
from tests.models.config_files import default_config

FACTOR_VALUES = {
    "family": ["unet", "dit"],
    "size": ["nano", "tiny", "XS"],
    "spatial_dims": [2, 3],
    "resolution": [32, 64],
    "sampler": ["ddpm", "ddim", "dpmpp"],
    "steps": [5, 20],
    "devices": [1, 2],
    "seed": [0, 1, 2],
}


def config_with(**changes):
    """The default config with `section__key=value` replaced."""
    config = default_config()
    for path, value in changes.items():
        section, key = path.split("__")
        config[section][key] = value
    return config


def test_the_default_study_is_as_large_as_it_promises():
    plan = make_plan(default_config())
    models = {(m["family"], m["size"], m["spatial_dims"], m["resolution"]) for m in plan.models.values()}
    assert len({m for m in models if m[2] == 2}) == 8  # 2 families x 2 sizes x 2 resolutions
    assert len({m for m in models if m[2] == 3}) == 4  # 2 families x 2 sizes
    for model in plan.models:
        assert len({run["sampler"] for run in plan.runs.values() if run["model"] == model}) >= 2


def test_runs_share_models_autoencoders_and_cohorts():
    plan = make_plan(default_config())
    assert len(plan.runs) == 24
    assert len(plan.models) == 12
    assert len(plan.autoencoders) == len(plan.cohorts) == 3
    for run in plan.runs.values():
        assert run["model"] in plan.models
        assert run["autoencoder"] in plan.autoencoders
        assert run["cohort"] in plan.cohorts


def test_a_new_resolution_leaves_every_other_row_as_it_was():
    before = make_plan(default_config())
    config = default_config()
    config["matrix"]["resolution"] = [128, *config["matrix"]["resolution"]]
    after = make_plan(config)
    for kind in ("runs", "models", "autoencoders", "cohorts"):
        assert getattr(before, kind).items() <= getattr(after, kind).items()
        assert len(getattr(after, kind)) > len(getattr(before, kind))


def test_keys_do_not_depend_on_the_order_of_the_config():
    config = default_config()
    config["matrix"] = dict(reversed(config["matrix"].items()))
    assert set(make_plan(config).runs) == set(make_plan(default_config()).runs)


@given(
    st.fixed_dictionaries({k: st.lists(st.sampled_from(v), min_size=1, unique=True) for k, v in FACTOR_VALUES.items()})
)
def test_the_matrix_is_the_full_product_each_combination_once(matrix):
    rows = expand_matrix(matrix)
    assert len(rows) == prod(len(values) for values in matrix.values())
    assert len({tuple(row[factor] for factor in FACTORS) for row in rows}) == len(rows)


@given(st.sampled_from(FACTORS), st.data())
def test_exclude_removes_exactly_what_agrees(factor, data):
    value = data.draw(st.sampled_from(FACTOR_VALUES[factor]))
    rows = expand_matrix({**FACTOR_VALUES, "exclude": [{factor: value}]})
    assert rows == [row for row in expand_matrix(FACTOR_VALUES) if row[factor] != value]


def test_include_fills_in_the_factors_it_leaves_out():
    base = {factor: values[:1] for factor, values in FACTOR_VALUES.items()}
    rows = expand_matrix({**base, "include": [{"steps": [5, 9]}, {"seed": 4}]})
    assert [(row["steps"], row["seed"]) for row in rows] == [(5, 0), (9, 0), (5, 4)]  # the first is there only once


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"matrix__steps": [301]}, r"matrix\.steps: 301 is more than diffusion\.timesteps, 300"),
        (
            {"matrix__steps": [40]},
            r"matrix\.steps: ddpm needs a divisor of .* 300, and 40 is none; the nearest are 30 and 50",
        ),
        ({"matrix__sampler": ["euler"]}, r"matrix\.sampler: euler does not go with v_prediction; use one of ddpm"),
        (
            {"diffusion__prediction": "flow"},
            r"matrix\.sampler: ddpm does not go with flow; use one of dpmpp, euler, heun",
        ),
        ({"matrix__devices": [3]}, r"diffusion\.batch_size\.2d: 8 cannot be shared evenly by 3 devices"),
        ({"matrix__seed": [1, 1]}, r"matrix\.seed: a value is there twice"),
        ({"diffusion__patch": [2, 2, 1]}, r"diffusion\.patch: \[2, 2, 1\] has 3 sides, and images here have 2 axes"),
        ({"matrix__size": ["voldit-S/8"]}, r"matrix\.size: voldit-S/8 is not .*did you mean voldit-S/[24]"),
        ({"matrix__size": ["voldit-S/4"]}, r"matrix\.size: voldit-S/4 is a dit; set matrix\.family to \[dit\]"),
        (
            {"matrix__family": ["dit"], "matrix__size": ["voldit-S/4"]},
            r"matrix\.size: voldit-S/4 is for images of 3 axes, and these have 2",
        ),
        ({"matrix__family": ["unet-slices"]}, r"matrix\.family: unet-slices is for stacks of slices over time"),
        ({"images__frames": 8}, r"images\.frames: 8, but images\.source bundled has still images"),
        (
            {"autoencoder__kind": "vq", "autoencoder__strides": [[2, 2], [2, 2]]},
            r"autoencoder\.strides: 2 levels, but autoencoder\.channels\.2d has 3",
        ),
        (
            {"autoencoder__kind": "vq", "autoencoder__strides": [[2, 2, 2]] * 3},
            r"autoencoder\.strides: each level needs a stride for each of the 2 axes",
        ),
        ({"autoencoder__crop": {"2d": 30, "3d": 16}}, r"autoencoder\.crop\.2d: 30 must be a multiple of 4"),
        ({"matrix__exclude": [{"spatial_dims": [2, 3]}]}, "no run is left"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(change, told):
    with pytest.raises(ValueError, match=told):
        make_plan(config_with(**change))


def test_plan_table_has_a_column_for_every_setting():
    plan = make_plan(default_config())
    assert all(len(row) == len(COLUMNS) and None not in row for row in plan.rows())
