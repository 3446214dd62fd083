"""The README of an export to vLLM: what was decided, and what to check on the machine."""

from llmpq.costs.kv_blocks import KvBlocks
from llmpq.export.vllm_settings import VllmSettings
from llmpq.plan import Plan
from llmpq.printing import format_ranges
from llmpq.units import format_bytes

CARDS = "Cards are numbered as `nvidia-smi` lists them (`CUDA_DEVICE_ORDER=PCI_BUS_ID`), in the order of the cluster's devices."
CPU = """What vLLM {version} lacks on CPU comes from `llmpq_vllm_plugin.py`, given to it as `--worker-cls`: 8-bit weight-only
linears, the tensors that an eager pipeline receives, and leave to use AMX. It stops with a message under another version."""
RAY = """The stages are on hosts with unlike numbers of them, so vLLM needs Ray: `ray start --head` on {first},
`ray start --address` on the others, then `./launch.sh` on {first}. vLLM {version} gives its ranks to {first} first, then to the
host with the fewest cards, then by address: check in its log that rank 0, 1, … run where the table says."""
NODES = """Copy this directory to every host and start it on each: {commands}. MASTER_ADDR is the address of {first},
which also serves. (From vLLM {version}'s source; not run over several hosts.)"""
GROUPS = """Every stage is a tensor-parallel group of {ranks} devices (`--tensor-parallel-size`), one behind the other in the
order of the ranks; the cache of the table is that of each. vLLM splits the one checkpoint itself."""
WINDOWED = """Some layers have a sliding window; `--disable-hybrid-kv-cache-manager` gives every layer a full cache, so that the
number of blocks below is the one that vLLM gets."""


def readme(plan: Plan, settings: VllmSettings, blocks: KvBlocks) -> str:
    """Markdown: the stages, the settings with their reasons, the check."""
    short = settings.kv_blocks < settings.kv_blocks_needed
    queue = (
        f"fewer than the {settings.kv_blocks_needed} that {settings.max_num_seqs} sequences need at their longest: vLLM queues"
    )
    enough = f"enough for {settings.max_num_seqs} sequences at their longest ({settings.kv_blocks_needed})"
    return "\n".join(
        [
            f"# {plan.model} on vLLM {settings.vllm_version}",
            "",
            "Written by `llmpq export`. Start with `./launch.sh`, or `llmpq serve DIR` with this directory.",
            "",
            "| stage | device | layers | KV cache |",
            "|---|---|---|---|",
            *_rows(plan, settings),
            "",
            f"- dtype `{settings.dtype}`: one for all ranks{_cache(settings)}.",
            f"- `VLLM_PP_LAYER_PARTITION={','.join(map(str, settings.partition))}`; executor: {settings.executor}.",
            f"- At most {settings.max_num_seqs} sequences of {settings.max_model_len} tokens; "
            f"{settings.max_num_batched_tokens} tokens a step, as the plan's micro-batches.",
            f"- **{settings.kv_blocks} KV blocks** of {settings.block_size} tokens on every rank, {queue if short else enough}. "
            f"{plan.stages[blocks.tightest].device} has the least room. vLLM takes one figure for all ranks, "
            f"{format_bytes(settings.kv_cache_memory_bytes)}, and shrinks every rank's cache to the same number of blocks.",
            *_notes(settings),
            "",
            "Check: `llmpq serve DIR --check` compares log-probabilities with the dequantized reference, and the number of KV "
            "blocks with the one above; a mismatch is an error.",
            "",
        ]
    )


def _cache(settings: VllmSettings) -> str:
    return "" if settings.kv_cache_dtype == "auto" else f"; KV cache: `{settings.kv_cache_dtype}`"


def _rows(plan: Plan, settings: VllmSettings) -> list[str]:
    return [
        f"| {index} | {stage.device} (host {host}) | {format_ranges(stage.options, stage.first_layer)} | {format_bytes(nbytes)} |"
        for index, (stage, host, nbytes) in enumerate(
            zip(plan.stages, settings.hosts[:: settings.tensor_parallel], settings.rank_kv_bytes[:: settings.tensor_parallel])
        )
    ]


def _notes(settings: VllmSettings) -> list[str]:
    version, first = settings.vllm_version, settings.nodes[0]
    commands = ", ".join(f"`NODE_RANK={rank} MASTER_ADDR=… ./launch.sh` on {host}" for rank, host in enumerate(settings.nodes))
    notes = {
        CARDS: settings.kind != "cpu" and settings.executor != "ray",
        CPU.format(version=version): settings.kind == "cpu",
        RAY.format(version=version, first=first): settings.executor == "ray",
        NODES.format(version=version, first=first, commands=commands): settings.executor == "mp over hosts",
        WINDOWED: settings.windowed,
        GROUPS.format(ranks=settings.tensor_parallel): settings.tensor_parallel > 1,
    }
    return [f"- {note.replace(chr(10), ' ')}" for note, applies in notes.items() if applies]
