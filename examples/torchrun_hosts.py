"""One stage on each of two hosts, started by torchrun as on a cluster; here both are this machine, over loopback.

python examples/torchrun_hosts.py
"""

import shlex
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import llmpq

CLUSTER = Path(__file__).parent / "clusters" / "two-unlike-cpus.yaml"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(out: Path, node: int, port: int) -> list[str]:
    """What is to be started on host number `node`; the address is that of host 0."""
    launcher = f"torchrun --nnodes 2 --node-rank {node} --nproc-per-node 1 --master-addr 127.0.0.1 --master-port {port}"
    return shlex.split(f"{launcher} -m llmpq run {out} --prompt 'def main(' --max-new-tokens 16")


def main() -> None:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        workload = llmpq.Batch(batch_size=8, prompt_len=64, gen_len=32)
        llmpq.compile("demo", CLUSTER, workload, out=out, indicator="prior", quantizer="rtn", quality_check=False)
        port = free_port()
        commands = [command(out, node, port) for node in range(2)]
        for words in commands:
            print("$", shlex.join(words).replace(str(out), "out"))
        hosts = [subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *words[1:]]) for words in commands]
        codes = [host.wait() for host in hosts]
        if any(codes):
            sys.exit(f"torchrun ended with exit codes {codes}")


if __name__ == "__main__":
    main()
