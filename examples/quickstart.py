"""Plan, quantize and run a model over two devices that are each too small for it.

python examples/quickstart.py
"""

from pathlib import Path

import llmpq

CLUSTER = Path(__file__).parent / "clusters" / "two-unlike-cpus.yaml"


def main() -> None:
    compiled = llmpq.compile(
        "demo",  # the model that ships with llmpq; or a hub id, or a directory
        CLUSTER,
        llmpq.Batch(batch_size=8, prompt_len=64, gen_len=32),
        indicator="prior",  # published sensitivities; leave it out to measure them (some seconds)
        quantizer="rtn",  # round to nearest; leave it out for GPTQ (half a minute)
        quality_check=False,
    )
    print(compiled)
    for text in compiled.generate(["def main(", "import "], max_new_tokens=16):
        print(repr(text))


if __name__ == "__main__":
    main()
