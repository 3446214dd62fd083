"""The precision of the KV cache in plans: memory, seconds, quality and what engines take."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmpq.compiler import plan, prepare
from llmpq.costs.live_bytes import stage_bytes
from llmpq.costs.op_latency import cache_s
from llmpq.errors import InfeasibleError, InputError
from llmpq.export.vllm import VllmTarget
from llmpq.frontend.models import resolve
from llmpq.graph import Attention
from llmpq.hardware.cluster import Cluster
from llmpq.hardware.devices import device_types
from llmpq.hardware.kernel_shapes import cache_problem
from llmpq.hardware.support import cache_support
from llmpq.options import Options
from llmpq.plan import ComputeDtype, Plan
from llmpq.planning.cache_choice import fastest_cache
from llmpq.planning.fit import asked, fits
from llmpq.planning.limits import max_batch
from llmpq.precision import CACHE_PRECISIONS, PRECISIONS, CachePrecision
from llmpq.profiling.live_tensors import LiveTensors
from llmpq.profiling.probe import lowered
from llmpq.profiling.profiler import subject_of
from llmpq.profiling.random_weights import fill
from llmpq.program import Program
from llmpq.quantization.quantized_linear import forget_scratch
from llmpq.runtime.batching import Row, Step
from llmpq.runtime.stage import Stage
from llmpq.runtime.timeline import Action
from llmpq.sensitivity import PRIOR_CACHE_NATS, SensitivityTable, prior, with_prior_cache
from llmpq.serialize import dumps, loads
from llmpq.workload import Batch
from tests.conftest import CommandLine
from tests.values import llama_graph, llama_kind, two_cpus

LONG = Batch(8, 900, 40)


def planned(kept: str, cluster: Cluster | None = None, engine: str = "local") -> Plan:
    found: Plan = plan("demo", cluster or two_cpus(), LONG, indicator="prior", kv_precision=kept, engine=engine).require("plan")
    return found


def test_bytes_of_a_token_are_those_of_its_heads_and_their_scales() -> None:
    sizes = {kept: Attention(8, 2, 64, cached_at=kept).kv_bytes_per_token for kept in CACHE_PRECISIONS}
    assert sizes == {"16": 2 * 2 * 64 * 2, "int8": 2 * 2 * (64 + 4), "fp8": 2 * 2 * 64}
    latent = Attention(8, 1, 64, value_head_dim=32, index_dim=16, cached_at="int8")
    assert latent.kv_bytes_per_token == (64 + 4) + (32 + 4) + 16 * 2


def test_a_plan_at_int8_counts_the_cache_in_memory_and_in_quality() -> None:
    wide, narrow = planned("16"), planned("int8")
    kv = {found: sum(memory.kv_cache for memory in found.prediction.memory) for found in (wide, narrow)}
    head_dim = 64
    assert kv[narrow] * 2 * head_dim == kv[wide] * (head_dim + 4)
    assert narrow.kv_precision == "int8"
    assert "KV cache at int8" in str(narrow) and "KV cache" not in str(wide)
    assert "int8 cache +0.0010 in all, assumed" in narrow.quality.provenance
    assert loads(Plan, dumps(narrow)) == narrow
    assert '"kv_precision"' not in dumps(wide)


def test_more_sequences_fit_with_a_rounded_cache() -> None:
    def most(kept: str) -> int:
        program = prepare("demo", two_cpus("16 MiB", "16 MiB"), LONG, indicator="prior", kv_precision=kept, precisions="w8a16")
        found = max_batch(program)[0].largest
        assert found is not None
        return found

    assert most("int8") > 1.3 * most("16")
    assert most("fp8") >= most("int8")


def test_every_layer_counts_its_share_of_the_cache_once() -> None:
    graph = llama_graph()
    program = prepare("demo", two_cpus(), LONG, indicator="prior", kv_precision="int8")
    table: SensitivityTable = program.require("sensitivity")
    sixteen = tuple("16" for _ in table.rows)
    assert table.total(sixteen) == pytest.approx(PRIOR_CACHE_NATS["int8"])
    assert with_prior_cache(table, program.graph) == table
    plain = prior(graph, program.request.precisions)
    with pytest.raises(InputError, match="counts a KV cache at int8 already"):
        table.with_cache("fp8", 0.1, None, "twice")
    assert plain.cached_at == "16" and with_prior_cache(plain, graph) == plain


@pytest.mark.parametrize(
    ("engine", "device", "kept", "level"),
    [
        ("local", "CPU", "int8", "dequantize"),
        ("local", "V100-32", "fp8", "dequantize"),
        ("vllm", "T4", "int8", "native"),
        ("vllm", "T4", "fp8", "unsupported"),
        ("vllm", "A100-40", "fp8", "native"),
        ("vllm", "CPU", "int8", "unsupported"),
        ("vllm", "CPU", "fp8", "unsupported"),
        ("vllm", "MI300X", "fp8", "native"),
        ("transformers", "A100-40", "int8", "unsupported"),
        ("llama.cpp", "T4", "int8", "unsupported"),
    ],
)
def test_engines_take_the_caches_that_their_source_names(engine: str, device: str, kept: CachePrecision, level: str) -> None:
    answer = cache_support(engine, device_types()[device], kept)
    assert answer.level == level and answer.reason and answer.source


def test_latent_caches_stay_at_16_bits_on_vllm() -> None:
    cpu, card = device_types()["CPU"], device_types()["L4"]
    plain = llama_kind().with_cache("fp8")
    assert cache_problem("vllm", card, plain) is None
    latent = replace(plain, attention=replace(plain.attention, value_head_dim=32))
    told = cache_problem("vllm", card, latent)
    assert told is not None and "latent" in told.reason
    assert cache_problem("local", cpu, latent) is None


def test_an_engine_without_the_cache_says_so_before_planning() -> None:
    with pytest.raises(InfeasibleError, match="no int8 cache on this device"):
        planned("int8", engine="vllm")


def test_unknown_precisions_and_questions_about_none_are_refused() -> None:
    with pytest.raises(InputError, match="KV-cache precision 'int4' is unknown"):
        Options(kv_precision="int4")
    with pytest.raises(InputError, match="name one: 16, int8 or fp8"):
        prepare("demo", two_cpus(), LONG, indicator="prior", kv_precision="auto")


def test_auto_takes_the_fastest_and_a_coarser_one_only_where_it_gains() -> None:
    assert planned("auto").kv_precision == "16"  # our runtime dequantizes first, which costs time

    def fit(kept: str, mebibytes: int) -> bool:
        cluster = two_cpus(f"{mebibytes} MiB", f"{mebibytes} MiB")
        program = prepare("demo", cluster, LONG, indicator="prior", kv_precision=kept)
        return fits(asked(program, program.request))

    least = next(size for size in range(10, 40) if fit("fp8", size))
    assert not fit("16", least)
    assert planned("auto", two_cpus(f"{least} MiB", f"{least} MiB")).kv_precision != "16"


def test_auto_raises_what_16_bits_raise_where_nothing_fits() -> None:
    def refuse(kept: CachePrecision) -> Program:
        raise InfeasibleError((f"{kept} does not fit",))

    with pytest.raises(InfeasibleError, match="16 does not fit"):
        fastest_cache(refuse)


def test_a_cache_that_kernels_read_as_it_is_saves_time_and_one_that_is_dequantized_costs_some() -> None:
    cpu, card = two_cpus().devices[0], Cluster.load("1xH100").devices[0]
    kind = llama_kind(hidden=4096, kv_heads=8, head_dim=128)
    shape: tuple[int, int, int, ComputeDtype] = (32, 1, 4096, "bfloat16")
    assert cache_s(cpu, kind, "local", *shape) == 0.0
    assert cache_s(cpu, kind.with_cache("int8"), "local", *shape) > 0
    saved = -cache_s(card, kind.with_cache("fp8"), "vllm", *shape)
    read_s = 32 * 4096 * kind.kv_bytes_per_token / 2 / card.type.bandwidth_bytes_per_s
    assert read_s < saved < 2 * read_s


@pytest.mark.parametrize(("precision", "kept"), [("16", "int8"), ("16", "fp8"), ("fp8", "16")])
def test_a_stage_holds_no_more_than_predicted_with_rounded_caches_and_fp8_weights(precision: str, kept: CachePrecision) -> None:
    """Counted tensor by tensor, as tests/test_live_bytes.py does it for the others."""
    subject = subject_of(resolve("demo", weights=False), "cpu")
    graph = subject.graph.with_cache(kept)
    module = lowered(subject, (precision,) * graph.num_layers)
    fill(module, torch.bfloat16, torch.device("cpu"))
    attention = {layer: graph.kind_of(layer).attention for layer in range(graph.num_layers)}
    stage = Stage(module.eval().requires_grad_(False), attention, torch.bfloat16)
    forget_scratch()
    with LiveTensors(module.state_dict(keep_vars=True).values()) as meter:
        stage.reserve(4, 151)
        for phase, length, tokens in (("P", 150, 150), ("D", 151, 1)):
            rows = tuple(Row(slot, slot, length) for slot in range(4))
            stage.run(Step(Action(phase, 0), 0, rows), torch.ones(4, tokens, dtype=torch.int64))  # type: ignore[arg-type]
    measured = meter.peak_bytes - meter.held_bytes - stage.cache_bytes
    layers = tuple((kind, PRECISIONS[precision]) for kind in graph.kinds)
    assert measured <= stage_bytes(graph, layers, (4, 150, 151), in_place=True, is_first=True) <= 2.5 * measured


def test_vllm_is_told_the_dtype_of_its_cache() -> None:
    cluster = Cluster.load("1xL4")
    found = plan("llama-3-8b", cluster, Batch(4, 128, 32), engine="vllm", kv_precision="fp8", precisions="w8a16,w4a16")
    written = VllmTarget().files(found.require("plan"), found.graph, {})
    assert "--kv-cache-dtype fp8" in written["launch.sh"]
    assert '"kv_cache_dtype": "fp8"' in written["vllm.json"]
    assert "KV cache: `fp8`" in written["README.md"]


def test_a_compiled_model_with_an_int8_cache_runs_and_scores_as_it_was_planned(cli: CommandLine, tmp_path: Path) -> None:
    from llmpq.checkpoint.reference import reference_model
    from llmpq.compiled import load
    from llmpq.quantization.original import log_probs_of

    out = tmp_path / "out"
    workload = ("--cluster", "2xCPU", "--batch-size", 2, "--prompt-len", 24, "--gen-len", 8)
    rest = ("--kv-precision", "int8", "--precisions", "16", "--indicator", "prior", "--no-quality-check", "-o", out)
    ran = cli("compile", "demo", *workload, *rest)
    assert ran.code == 0, ran.err
    model = load(out)
    assert model.graph.cached_at == "int8"
    ids = model.encode(["def f(x):\n    return x + 1\n\n\nclass A:\n    pass\n" * 2])[0][:24]
    assert len(model.backend.generate([ids, ids], model.sampling(8))) == 2
    cache = sum(stage.cache_bytes for stage in model.backend._engine.stages.values())
    assert cache == sum(memory.kv_cache for memory in model.plan.prediction.memory)
    reference = log_probs_of(reference_model(out))(ids)
    assert torch.allclose(model.reference().log_probs(ids), reference, atol=2e-3)
    fresh = load(out).reference()
    plain = replace(fresh, program=replace(fresh.program, plan=replace(fresh.plan, kv_precision="16")))
    assert not torch.allclose(plain.log_probs(ids), reference, atol=2e-3)
