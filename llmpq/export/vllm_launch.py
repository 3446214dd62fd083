"""The launch script of an export to vLLM: environment and command, the one place where both are written."""

from shlex import quote

from llmpq.export.vllm_settings import PLUGIN_CLASS, VllmSettings

HEAD = """#!/usr/bin/env bash
# Serves the model beside this script with vLLM {version}, as planned: see README.md.
#   PYTHON=/path/to/python {name} [--port 8000] [any other option of vLLM]
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
"""


def launch_script(settings: VllmSettings) -> str:
    """Bash; arguments are handed on to vLLM, PYTHON names the interpreter that has it."""
    parts = [HEAD.format(version=settings.vllm_version, name="./launch.sh").rstrip()]
    if settings.executor == "mp over hosts":
        nodes = ", ".join(f"{rank} on {host}" for rank, host in enumerate(settings.nodes))
        parts.append(
            f': "${{NODE_RANK:?is not set: {nodes}}}" "${{MASTER_ADDR:?is not set: the address of {settings.nodes[0]}}}"'
        )
    parts += [f"export {name}={value}" for name, value in _environment(settings).items()]
    command = " \\\n  ".join([_program(settings), *_arguments(settings), '"$@"'])
    return "\n".join([*parts, f"exec {command}"]) + "\n"


def _environment(settings: VllmSettings) -> dict[str, str]:
    """Name -> value, as bash reads it."""
    stages, ranks = len(settings.partition), len(settings.devices)
    variables = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if stages > 1:
        variables["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, settings.partition))
    if len(settings.nodes) == 1:
        variables["VLLM_HOST_IP"] = "127.0.0.1"
    if settings.kind == "cpu":
        share = f"$(($(nproc) / {ranks} > 0 ? $(nproc) / {ranks} : 1))"
        variables |= {
            "OMP_NUM_THREADS": f'"${{OMP_NUM_THREADS:-{share}}}"',
            "VLLM_CPU_OMP_THREADS_BIND": '"${VLLM_CPU_OMP_THREADS_BIND:-nobind}"',
            "VLLM_CPU_INT4_W4A8": "0",
            "PYTHONPATH": '"$PWD${PYTHONPATH:+:$PYTHONPATH}"',
        }
    elif settings.executor == "mp over hosts":
        per_host = {
            host: ",".join(str(i) for i, at in zip(settings.device_indexes, settings.hosts) if at == host)
            for host in settings.nodes
        }
        choices = " ".join(f"{rank}) echo {cards};;" for rank, cards in enumerate(per_host.values()))
        variables |= {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": f'"$(case "$NODE_RANK" in {choices} esac)"',
        }
    elif settings.executor != "ray":
        cards = ",".join(map(str, settings.device_indexes))
        variables |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": cards}
    return variables


def _program(settings: VllmSettings) -> str:
    """Ranks without an API server are known to the command line alone, which CPU builds cannot start."""
    if settings.executor == "mp over hosts":
        return '"${PYTHON:-python3}" -m vllm.entrypoints.cli.main serve model'
    return '"${PYTHON:-python3}" -m vllm.entrypoints.openai.api_server --model model'


def _arguments(settings: VllmSettings) -> list[str]:
    arguments = [
        f"--served-model-name {quote(settings.served_model_name)}",
        f"--dtype {settings.dtype}",
        f"--max-model-len {settings.max_model_len}",
        f"--max-num-seqs {settings.max_num_seqs}",
        f"--max-num-batched-tokens {settings.max_num_batched_tokens}",
        f"--block-size {settings.block_size}",
        f"--kv-cache-memory-bytes {settings.kv_cache_memory_bytes}",
    ]
    if settings.kv_cache_dtype != "auto":
        arguments.append(f"--kv-cache-dtype {settings.kv_cache_dtype}")
    if settings.tensor_parallel > 1:
        arguments.append(f"--tensor-parallel-size {settings.tensor_parallel}")
    if len(settings.partition) > 1:
        arguments.append(f"--pipeline-parallel-size {len(settings.partition)}")
    if len(settings.devices) > 1:
        arguments.append(f"--distributed-executor-backend {'ray' if settings.executor == 'ray' else 'mp'}")
    if settings.executor == "mp over hosts":
        arguments.append(f'--nnodes {len(settings.nodes)} --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR"')
        arguments.append('$([ "$NODE_RANK" = 0 ] || echo --headless)')
    if settings.windowed:
        arguments.append("--disable-hybrid-kv-cache-manager")
    if settings.kind == "cpu":
        arguments += ["--enforce-eager", f"--worker-cls {PLUGIN_CLASS}"]
    else:
        arguments.append(f"--gpu-memory-utilization {settings.memory_utilization}")
    return arguments
