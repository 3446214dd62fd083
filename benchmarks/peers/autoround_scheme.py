"""AutoRound's AutoScheme, in an environment of its own: python autoround_scheme.py MODEL TEXT.txt AVERAGE_BITS GROUP OUT.json."""

import json
import sys
from pathlib import Path

import torch
from auto_round import AutoRound, AutoScheme
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Writes {linear: bits} as AutoScheme allots them among 3, 4 and 8 bits (weight only) at that average."""
    directory, text, average, group, out = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    options = [{"bits": bits, "group_size": int(group), "sym": True, "data_type": "int", "act_bits": 16} for bits in (3, 4, 8)]
    scheme = AutoScheme(avg_bits=float(average), options=options, ignore_scale_zp_bits=True)
    rounder = AutoRound(model, tokenizer, scheme=scheme, iters=0, dataset=text, seqlen=512, nsamples=32, device_map="cpu")
    rounder.post_init() if hasattr(rounder, "post_init") else rounder.quantize()
    chosen = rounder.layer_config
    Path(out).write_text(json.dumps({name: value["bits"] for name, value in chosen.items() if "lm_head" not in name}))


if __name__ == "__main__":
    main()
