"""The machine that a benchmark ran on, for its JSON: wall times say little where the load average is above the cores."""

import os
import platform
from pathlib import Path
from typing import Any

from llmpq.versions import library_versions

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, vector instructions that matter to kernels, versions; no host name."""
    try:
        lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    except OSError:
        lines = []
    found = {key.strip(): value.strip() for key, value in lines}
    flags = found.get("flags", "").split()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": found.get("model name", platform.processor()),
        "instructions": [
            name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if name in flags
        ],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "versions": library_versions(),
    }
