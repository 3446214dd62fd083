"""A stand-in for the process that times vLLM's steps: seconds by a formula, or a death, as LLMPQ_FAKE says."""

import json
import os
import sys
from pathlib import Path

TOKEN_S, PAIR_S = 1e-5, 1e-8  # of a layer: each token, each pair of a token and a position that it sees
FACTORS = {None: 1.0, 4: 2.0, 8: 0.5}  # of the linears, by weight bits


def factors(setup: dict[str, object]) -> list[float]:
    """Of each layer, as the written configuration has it."""
    config = json.loads((Path(str(setup["model"])) / "config.json").read_text())
    assert config["num_hidden_layers"] == setup["layers"]
    groups = config.get("quantization_config", {}).get("config_groups", {}).values()
    bits = {target: group["weights"]["num_bits"] for group in groups for target in group["targets"]}
    names = (f"model.layers.{layer}.mlp.down_proj" for layer in range(config["num_hidden_layers"]))
    return [FACTORS[bits.get(name)] for name in names]


def answer(step: dict[str, int], layers: list[float]) -> dict[str, object]:
    rows, tokens, context, decoding, decode_context = step.values()
    prompts = tokens > 1
    pairs = rows * (tokens * tokens / 2 if prompts else context) + decoding * decode_context
    total, sampled = rows * tokens + decoding, rows + decoding
    return {
        "layers": [factor * TOKEN_S * total + PAIR_S * pairs for factor in layers],
        "attention": [PAIR_S * pairs] * len(layers),
        "first": 1e-6 * total,
        "last": 3e-5 * sampled + (1e-7 * rows * tokens if prompts else 0.0),
        "rank": 2e-4,
        "message": 3e-4,
        "engine": 1e-4,
        "total": 0.01,
        "busy": 1.0,
    }


def main() -> None:
    setup = json.loads(sys.argv[1])
    layers = factors(setup)
    if os.environ.get("LLMPQ_FAKE") == "dies":
        print("INFO loading\nValueError: no kernel for this weight", file=sys.stderr)
        sys.exit(3)
    print(json.dumps({"versions": {"vllm": "0.32.0"}, "threads": 1, "kv_tokens": 4096, "load_s": 0.1}), flush=True)
    with Path(os.environ["LLMPQ_STEPS"]).open("a") as asked:
        for line in sys.stdin:
            asked.write(line)
            asked.flush()
            print(json.dumps(answer(json.loads(line), layers)), flush=True)


main()
