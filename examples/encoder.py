"""An encoder, planned over two devices, quantized and run as a pipeline: one pass over a padded batch, no cache.

python examples/encoder.py
"""

import torch
from transformers import BertConfig, BertForMaskedLM

import llmpq


def main() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=512, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128)
    model = BertForMaskedLM(config)
    model.train(False)
    workload = llmpq.Batch(batch_size=3, prompt_len=24, gen_len=1)
    compiled = llmpq.compile(model, "2xCPU", workload, precisions=("w8a16",), assign="assign-even")
    print(compiled)
    ids = torch.randint(5, 512, (3, 24))
    mask = torch.ones_like(ids)
    mask[1, 16:] = 0
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    found = compiled.forward(ids, mask).float()[mask.bool()]
    print(f"largest difference of the logits: {(found - expected).abs().max():.3f}, of logits up to {expected.abs().max():.3f}")


if __name__ == "__main__":
    main()
