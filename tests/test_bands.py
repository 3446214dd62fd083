"""Bands of a plan: the formula against random draws, what makes them wider, plans that were written without them."""

import json
import random
from dataclasses import replace
from functools import partial
from math import exp, log

import pytest

from llmpq.compiler import plan
from llmpq.costs.source_bands import link_band, option_band
from llmpq.frontend.cached_graphs import layer_graph_of
from llmpq.frontend.models import resolve
from llmpq.hardware.cluster import Cluster
from llmpq.hardware.link import Link
from llmpq.plan import Bands, Plan, Range
from llmpq.planning.bands import Term, combined, pipeline_seconds
from llmpq.precision import PRECISIONS
from llmpq.printing import format_plan, format_with_band
from llmpq.serialize import dumps, from_json, loads
from llmpq.solver.problem import EndCost, Problem
from llmpq.workload import Batch, Serving
from tests.values import llama_graph

Z90 = 1.6449  # standard deviations that nine of ten draws keep within
WORKLOAD = Batch(8, 64, 32)


def problem(stages: int, micro_batches: int = 4, gen_len: int = 16) -> Problem:
    """The sizes alone: seconds come as terms."""
    none = EndCost((0.0,) * stages, (0.0,) * stages, (0,) * stages)
    cell = (((0.0,),) * stages,)
    return Problem(
        options=("16",),
        devices=tuple(f"CPU:{j}" for j in range(stages)),
        layer_kind=(0,) * stages,
        prefill_s=cell,
        decode_s=cell,
        layer_bytes=(((0,),) * stages,),
        first_stage=none,
        last_stage=none,
        link_prefill_s=((0.0,) * stages,) * stages,
        link_decode_s=((0.0,) * stages,) * stages,
        overlap=False,
        capacity_bytes=(1,) * stages,
        sensitivity=((0.0,),) * stages,
        sensitivity_budget=None,
        theta=None,
        prefill_micro_batches=micro_batches,
        decode_micro_batches=micro_batches,
        gen_len=gen_len,
    )


def drawn(terms: tuple[Term, ...], source: random.Random) -> dict[str, float]:
    """One normal number for every group."""
    return {group: source.gauss(0.0, 1.0) for group in dict.fromkeys(term.group for term in terms)}


def off_by(errors: dict[str, float], term: Term) -> float:
    """Log-normal on each side of 1, nine of ten within the band."""
    band, deviation = term.band, errors[term.group]
    return exp(deviation / Z90 * (log(band.high) if deviation > 0 else -log(band.low)))


@pytest.mark.parametrize("balance", [(1.0, 1.0, 1.0), (1.0, 0.5, 0.2), (0.3, 1.0, 0.9)])
@pytest.mark.parametrize("band", [Range(0.9, 1.1), Range(0.85, 1.3), Range(0.6, 1.5)])
@pytest.mark.parametrize("groups", [("a", "a", "a"), ("a", "b", "c"), ("a", "b", "a")])
def test_nine_in_ten_of_random_draws_or_more_lie_within_the_band(
    balance: tuple[float, ...], band: Range, groups: tuple[str, ...]
) -> None:
    terms = tuple(Term(j, False, group, share, share / 8, band) for j, (share, group) in enumerate(zip(balance, groups)))
    terms += tuple(Term(j, True, "links", 0.02, 0.002, Range(0.3, 3.0)) for j in range(3))
    sizes, source = problem(3), random.Random(1)
    ranges, inside, draws = combined(sizes, terms), [0, 0, 0], 600
    for _ in range(draws):
        errors = drawn(terms, source)
        prefill, decode = pipeline_seconds(sizes, terms, partial(off_by, errors))
        for index, value in enumerate((prefill, decode, prefill + decode)):
            inside[index] += ranges[index].low <= value <= ranges[index].high
    assert all(0.84 <= count / draws <= 0.99 for count in inside), [count / draws for count in inside]


def test_layers_of_one_device_type_are_off_together_and_those_of_two_partly_cancel() -> None:
    band = Range(0.8, 1.25)
    together, apart = (
        combined(problem(2, micro_batches=1), (Term(0, False, "a", 1.0, 1.0, band), Term(1, False, other, 1.0, 1.0, band)))[0]
        for other in ("a", "b")
    )
    assert (together.low, together.high) == pytest.approx((1.6, 2.5))
    assert (apart.low, apart.high) == pytest.approx((2 - 0.2 * 2**0.5, 2 + 0.25 * 2**0.5))


def test_a_stage_that_is_hidden_behind_a_slower_one_adds_nothing_until_it_is_the_slowest() -> None:
    slow, quick = Term(0, False, "a", 0.0, 1.0, Range(1.0, 1.0)), Term(1, False, "b", 0.0, 0.5, Range(0.5, 1.8))
    assert combined(problem(2, micro_batches=8), (slow, quick))[1] == Range(8.0 * 15, 8.0 * 15)
    wild = replace(quick, band=Range(0.5, 4.0))
    assert combined(problem(2, micro_batches=8), (slow, wild))[1] == Range(8.0 * 15, 16.0 * 15)


def test_what_rests_on_measurements_has_a_narrower_band_than_what_rests_on_assumptions() -> None:
    graph = llama_graph()
    widths = []
    for name, precision in (("A100-80", "16"), ("T4", "16"), ("A100-80", "w4a16"), ("RTX3090", "16"), ("T4", "w8a8")):
        device = Cluster.load(f"1x{name}").devices[0]
        band = option_band(device, PRECISIONS[precision], "vllm", graph, None)
        widths.append(band.high / band.low)
    assert widths == sorted(widths)
    links = [link_band(Link(1e9, 1e-5, provenance)) for provenance in ("measured", "given", "assumed", "hearsay")]
    assert [link.high for link in links] == sorted(link.high for link in links)


def test_latent_attention_which_no_table_has_widens_the_band_of_a_table_to_that_of_the_roofline() -> None:
    device, sixteen = Cluster.load("1xA100-80").devices[0], PRECISIONS["16"]
    plain, latent = (layer_graph_of(resolve(name, weights=False)) for name in ("llama-3-8b", "deepseek-v3"))
    narrow, wide = (option_band(device, sixteen, "vllm", graph, None) for graph in (plain, latent))
    assert wide.low < narrow.low
    assert wide.high > narrow.high


@pytest.mark.parametrize("workload", [WORKLOAD, Serving(rate_per_s=1.0, prompt_len=64, gen_len=32)])
def test_every_plan_has_bands_around_what_it_predicts(workload: Batch | Serving) -> None:
    made = plan("llama-3-8b", "1xL4,1xT4", workload, engine="local").require("plan")
    bands, prediction = made.prediction.bands, made.prediction
    assert isinstance(bands, Bands)
    assert bands.decode_s.low < prediction.decode_s < bands.decode_s.high
    assert bands.latency_s.low < prediction.latency_s < bands.latency_s.high
    assert bands.tokens_per_s.low < made.tokens_per_s < bands.tokens_per_s.high
    assert loads(Plan, dumps(made)) == made
    assert f"tokens/s ({bands.tokens_per_s.low:.4g}-{bands.tokens_per_s.high:.4g})" in format_plan(made)


def test_a_plan_that_was_written_before_there_were_bands_still_loads_and_prints() -> None:
    made = plan("llama-3-8b", "1xL4", WORKLOAD).require("plan")
    old = json.loads(dumps(made))
    del old["prediction"]["bands"]
    read = from_json(Plan, old)
    assert read == replace(made, prediction=replace(made.prediction, bands=None))
    assert "(" not in format_plan(read).split("predicted: ")[1].split(" tokens/s")[0]


def test_bands_are_written_in_the_unit_of_what_they_are_around() -> None:
    assert format_with_band(12.4, Range(11.6, 13.3)) == "12.4 s (11.6-13.3)"
    assert format_with_band(1.1, Range(0.9, 1.4)) == "1.1 s (900 ms-1.4 s)"
    assert format_with_band(0.2, None) == "200 ms"
