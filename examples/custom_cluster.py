"""A cluster and rules of your own: figures for a card that the library does not know, and what must hold of the plan.

python examples/custom_cluster.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import llmpq
from llmpq.errors import InfeasibleError

CLUSTER = """
name: attic
devices:
  - {type: GTX1080TI, count: 2, host: old-box, memory: 10 GiB, bandwidth: 484 GB/s, flops: 11.3 TFLOPS, price_per_hour: 0.05}
  - {type: RTX4090, host: new-box, reserve: 2 GiB, price_per_hour: 0.40}
links:
  within_host: {bandwidth: 6 GB/s, latency: 30 us}
  between_hosts: {bandwidth: 1.2 GB/s, latency: 80 us}
"""
RULES = (
    "layers[0:2].bits >= 8",  # the first layers suffer most
    "last_layer.device == 'RTX4090:0'",
    "device('GTX1080TI:0').layers <= 12",
    "average_bits <= 7",
)


def main() -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "attic.yaml"
        path.write_text(CLUSTER, encoding="utf-8")
        cluster = llmpq.Cluster.load(path)
    workload = llmpq.Batch(batch_size=16, prompt_len=512, gen_len=128)
    request = {"precisions": "16,w8a16,w4a16", "max_ppl_increase": 0.05, "time_limit_s": 5.0}
    print(llmpq.make_plan("qwen2.5-14b", cluster, workload, constraints=RULES, **request))
    try:
        llmpq.make_plan("qwen2.5-14b", cluster, workload, constraints=(*RULES, "average_bits >= 15"), **request)
    except InfeasibleError as error:
        print(f"with average_bits >= 15: {error.reasons[0]}")


if __name__ == "__main__":
    main()
