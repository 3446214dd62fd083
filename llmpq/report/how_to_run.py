"""How to run it: the commands that carry a plan out."""

from collections.abc import Mapping
from shlex import quote

from llmpq.errors import InputError
from llmpq.hardware.cluster import Cluster
from llmpq.plan import Plan
from llmpq.report.markup import Markup, bullets, scrolling, section, tag
from llmpq.workload import Batch, Workload

Engines = Mapping[str, bool | str]  # engine -> True, or why it does not load the checkpoint


def run_section(plan: Plan, engines: Engines | None) -> Markup:
    """engines: of the compiled model beside the page; None for a plan alone."""
    if engines is None:
        words = "Nothing is compiled yet. This makes a compiled model and runs it:"
        runs = "llmpq serve OUT" if plan.engine == "vllm" else 'llmpq run OUT --prompt "…"'
        return section("run", "How to run it", tag("p", words), _code([_compile(plan), runs]))
    words = "In the directory of this page:"
    lines = ["llmpq verify .", 'llmpq run . --prompt "…"']
    lines += ["llmpq serve .", "llmpq export . --to vllm -o DIR"] if engines.get("vllm") is True else []
    loads = [f"{name}: {'loads this checkpoint' if found is True else found}" for name, found in engines.items()]
    return section("run", "How to run it", tag("p", words), _code(lines), *([bullets(loads)] if loads else []))


def _code(lines: list[str]) -> Markup:
    return scrolling("Commands", tag("pre", tag("code", "\n".join(lines))))


def _compile(plan: Plan) -> str:
    words = ["llmpq compile", quote(plan.model), "--cluster", _cluster(plan.cluster), *_workload(plan.workload)]
    cache = ["--kv-precision", plan.kv_precision] if plan.kv_precision != "16" else []
    return " ".join([*words, *(["--engine", quote(plan.engine)] if plan.engine != "local" else []), *cache, "-o OUT"])


def _cluster(cluster: Cluster) -> str:
    """Its short string where it was given by one, else a file to be named."""
    if cluster.name.casefold().endswith((".yaml", ".yml")):
        return "CLUSTER.yaml"
    try:
        return quote(cluster.name) if Cluster.load(cluster.name) == cluster else "CLUSTER.yaml"
    except InputError:
        return "CLUSTER.yaml"


def _workload(workload: Workload) -> list[str]:
    lengths = [f"--prompt-len {workload.prompt_len}", f"--gen-len {workload.gen_len}"]
    if isinstance(workload, Batch):
        return [f"--batch-size {workload.batch_size}", *lengths]
    limits = {"--ttft": workload.ttft_s, "--tpot": workload.tpot_s, "--prefix-hits": workload.prefix_hits or None}
    return [f"--rate {workload.rate_per_s:g}", *lengths, *(f"{name} {value:g}" for name, value in limits.items() if value)]
