"""The main job, end to end: plan, quantize, export, verify and run the bundled model over two unlike devices.

make demo        # or: python examples/demo.py [OUT]
"""

import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLUSTER = Path(__file__).parent / "clusters" / "two-unlike-cpus.yaml"


def run(command: str) -> None:
    """Show a command, run it, and stop the demo when it fails."""
    print(f"\n$ {command}", flush=True)
    started = time.perf_counter()
    arguments = [sys.executable, "-m", *shlex.split(command)]
    code = subprocess.run(arguments, check=False).returncode
    print(f"  ({time.perf_counter() - started:.1f} s)", flush=True)
    if code:
        sys.exit(f"demo: the command above failed with exit code {code}")


def main(out: Path) -> None:
    workload = "--batch-size 8 --prompt-len 64 --gen-len 32"
    run(f"llmpq plan demo --cluster {CLUSTER} {workload} --assign assign-even")
    run(f"llmpq compile demo --cluster {CLUSTER} {workload} -o {out}")
    run(f"llmpq verify {out}")
    run(f"llmpq run {out} --processes --prompt 'def main(' --max-new-tokens 40")
    run("llmpq eval demo --text report")
    run(f"llmpq eval {out} --text report --against demo")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as directory:
            main(Path(directory) / "out")
