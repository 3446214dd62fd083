"""LayerOption: names, mixtures, and what a layer of two precisions weighs."""

import pytest

from llmpq.errors import InputError
from llmpq.layer_option import PartPrecisions, mean_bits, parse_option, parse_options
from llmpq.precision import PRECISIONS, Precision, parse_precisions
from tests.values import llama_graph, llama_kind


def test_a_name_gives_the_option_back() -> None:
    for option in parse_options("16,w8a8,w4a16", "part"):
        assert parse_option(option.name) == option


def test_attention_comes_first() -> None:
    option = parse_option("w4a16/w8a8")
    assert isinstance(option, PartPrecisions)
    assert (option.of("attention").name, option.of("mlp").name) == ("w4a16", "w8a8")
    assert option.parts == parse_precisions("w4a16,w8a8")


def test_two_equal_parts_are_one_precision() -> None:
    assert parse_option("w4a16/w4a16") is PRECISIONS["w4a16"]
    assert parse_option("bf16/w4a16") == parse_option("16/w4a16")


def test_granularity_part_adds_every_mixture_of_two_once() -> None:
    options = parse_options("16,w8a16,w4a16", "part")
    assert len(options) == len(set(options)) == 9
    assert [option.name for option in options[:3]] == ["16", "w8a16", "w4a16"]
    assert parse_options("16,w8a16,w4a16") == options[:3]


def test_a_mixture_that_is_named_is_an_option_at_any_granularity() -> None:
    assert [option.name for option in parse_options("16,w4a16/w8a16")] == ["16", "w4a16/w8a16"]
    assert [option.name for option in parse_options("w4a16/16,16,w4a16", "part")] == ["w4a16/16", "16", "w4a16", "16/w4a16"]


@pytest.mark.parametrize("name", ["w5a16", "w4a16/", "/w4a16", "w4a16/w8a16/16", "w4a16/nvfp4"])
def test_a_part_of_an_unknown_precision_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="precision"):
        parse_options(name)


def test_an_option_is_quantized_where_a_part_is() -> None:
    assert parse_option("16/w8a16").is_quantized and parse_option("w8a16/16").is_quantized


def test_a_layer_weighs_what_its_parts_weigh() -> None:
    kind = llama_kind()
    mixed, swapped = (kind.weight_bytes(parse_option(name)) for name in ("w4a16/16", "16/w4a16"))
    whole = kind.weight_bytes(PRECISIONS["w4a16"]) + kind.weight_bytes(PRECISIONS["16"])
    assert mixed + swapped == whole and mixed > swapped  # the mlp is the larger part
    shares = {part: sum(w.in_features * w.out_features for w in kind.linears if w.part == part) for part in ("attention", "mlp")}
    graph = llama_graph()
    assert graph.attention_share == pytest.approx(shares["attention"] / sum(shares.values()))
    assert mean_bits(parse_option("w4a16/16"), graph.attention_share) == pytest.approx(16 - 12 * graph.attention_share)


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=lambda precision: precision.name)
def test_a_precision_is_that_of_both_parts(precision: Precision) -> None:
    assert precision.of("attention") is precision.of("mlp") is precision
    assert precision.parts == (precision,) and mean_bits(precision, 0.2) == precision.num_bits
