"""Times of layers of two precisions, from layers that were measured at one."""

import pytest

from llmpq.costs.part_times import measured_s, with_cache
from llmpq.layer_option import LayerOption, parse_option, parse_options

MODEL = {"16": (4.0, 8.0), "w8a16": (2.0, 4.0), "w4a16": (1.0, 2.0)}


def modelled(option: LayerOption) -> float:
    return MODEL[option.of("attention").name][0] + MODEL[option.of("mlp").name][1]


@pytest.mark.parametrize("option", parse_options("16,w8a16,w4a16", "part"), ids=lambda option: option.name)
def test_a_model_that_is_off_by_one_factor_everywhere_is_put_right(option: LayerOption) -> None:
    assert measured_s(option, lambda precision: 3 * modelled(precision), modelled) == pytest.approx(3 * modelled(option))


def test_a_layer_of_one_precision_takes_what_was_measured() -> None:
    assert measured_s(parse_option("w8a16"), lambda precision: 7.0, modelled) == 7.0


def test_a_mixture_lies_between_what_its_precisions_say() -> None:
    factors = {"16": 1.0, "w4a16": 4.0}
    found = measured_s(parse_option("16/w4a16"), lambda p: factors[p.name] * modelled(p), modelled)
    assert found == pytest.approx(2 * modelled(parse_option("16/w4a16")))


def test_nothing_is_known_where_one_of_the_precisions_was_not_measured() -> None:
    assert measured_s(parse_option("16/w4a16"), lambda p: 1.0 if p.name == "16" else None, modelled) is None


def test_a_measured_layer_with_another_cache_is_as_much_slower_or_faster_as_the_model_says() -> None:
    option = parse_option("16")
    assert with_cache(24.0, 3.0, option, modelled) == pytest.approx(24.0 * 15 / 12)
    assert 0 < with_cache(1.0, -11.0, option, modelled) < 1.0
    assert with_cache(24.0, 0.0, option, modelled) == 24.0
