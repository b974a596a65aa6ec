"""Zones: ids, country codes, spellings, seasons."""

import pycountry
import pytest

from emissions.grid.zones import all_zones, cloud_regions, find_zone


def test_there_are_352_zones_with_annual_values_and_three_with_a_typical_year_only():
    assert len(all_zones()) == 355
    assert {"IN-MH", "IN-UP", "US-HI-OA"} < set(all_zones())


@pytest.mark.parametrize(
    ("text", "zone"),
    [
        ("DE", "DE"),
        ("de ", "DE"),
        ("DEU", "DE"),
        ("us-cal-ciso", "US-CAL-CISO"),
        ("USA", "US"),
        ("XKX", "XK"),
        ("CL", "CL-SEN"),
        ("CHL", "CL-SEN"),
    ],
)
def test_ids_and_country_codes_of_two_and_three_letters_name_a_zone(text, zone):
    assert find_zone(text).zone == zone


def test_na_is_namibia():
    assert (find_zone("NA").zone_name, find_zone("NA").country) == ("Namibia", "NA")
    assert find_zone("NAM").zone == "NA"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("Germny", "DE (Germany)"),
        ("Germany", "DE (Germany)"),
        ("US-CAL", "US-CAL-CISO"),
        ("??", "ISO country code"),
        ("RU", "RU-1 (Europe-Ural), RU-2"),
        ("", "ISO country code"),
    ],
)
def test_an_unknown_zone_is_one_line_with_the_nearest_spellings(text, hint):
    with pytest.raises(ValueError) as error:
        find_zone(text)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_norway_without_quotes_in_yaml_is_explained():
    with pytest.raises(ValueError, match="quotes"):
        find_zone(False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("zone", "hemisphere", "january", "april", "july", "october"),
    [
        ("DE", "north", "winter", "spring", "summer", "autumn"),
        ("AU-NSW", "south", "summer", "autumn", "winter", "spring"),
        ("ZA", "south", "summer", "autumn", "winter", "spring"),
        ("KE", "tropical", "tropical", "tropical", "tropical", "tropical"),
        ("NA", "tropical", "tropical", "tropical", "tropical", "tropical"),  # Windhoek, 22.6 degrees south
    ],
)
def test_seasons_follow_the_zones_own_hemisphere(zone, hemisphere, january, april, july, october):
    place = find_zone(zone)
    assert place.hemisphere == hemisphere
    assert [place.season(month) for month in (1, 4, 7, 10)] == [january, april, july, october]


def test_december_belongs_to_winter_with_january_and_february():
    assert [month for month in range(1, 13) if find_zone("DE").season(month) == "winter"] == [1, 2, 12]


def test_a_month_outside_the_year_is_refused():
    with pytest.raises(ValueError, match="month is 13"):
        find_zone("DE").season(13)


def test_points_lie_in_their_country():
    assert find_zone("DE").latitude_deg == pytest.approx(52.5)
    assert find_zone("NZ").latitude_deg < -30
    assert find_zone("US-HI").longitude_deg == pytest.approx(-156.9)
    assert all(abs(z.latitude_deg) <= 90 and abs(z.longitude_deg) <= 180 for z in all_zones().values())


def test_a_country_without_a_grid_in_the_tables_is_named():
    with pytest.raises(ValueError, match="'AND': the tables have no grid of Andorra"):
        find_zone("AND")


@pytest.mark.parametrize(
    ("region", "zone"),
    [
        ("aws:eu-central-1", "DE"),
        ("AWS:us-east-1", "US-MIDA-PJM"),
        ("azure:swedencentral", "SE-SE3"),
        ("gcp:europe-west9", "FR"),
    ],
)
def test_a_cloud_region_names_the_zone_that_it_stands_in(region, zone):
    assert find_zone(region).zone == zone


@pytest.mark.parametrize(
    ("region", "hint"),
    [("aws:eu-central-3", "did you mean aws:eu-central-"), ("oracle:frankfurt", "providers are aws, azure and gcp")],
)
def test_an_unknown_cloud_region_is_one_line_with_the_nearest(region, hint):
    with pytest.raises(ValueError, match=hint) as caught:
        find_zone(region)
    assert "\n" not in str(caught.value)


def test_every_cloud_region_stands_in_a_zone_and_every_iso_code_resolves_or_is_explained():
    assert len(cloud_regions()) > 100
    assert set(cloud_regions().values()) <= set(all_zones())
    for country in pycountry.countries:
        zones = set()
        for code in (country.alpha_2, country.alpha_3):
            try:
                zones.add(find_zone(code).zone)
            except ValueError as error:
                zones.add("none")
                assert "the tables have no grid of" in str(error) or "several grids" in str(error)
        assert len(zones) == 1
