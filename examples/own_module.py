"""A module of your own, with a list of layers, planned over two devices, quantized and run as a pipeline.

python examples/own_module.py
"""

import torch
from torch import Tensor, nn

import llmpq

VOCABULARY, HIDDEN, LAYERS = 256, 64, 6


class Layer(nn.Module):
    """Attention over everything before, then two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.key = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)
        self.output = nn.Linear(HIDDEN, HIDDEN)
        self.mlp = nn.Sequential(nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 4 * HIDDEN), nn.GELU(), nn.Linear(4 * HIDDEN, HIDDEN))

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norm(hidden)
        query, key, value = (self.heads(part(normed)) for part in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = hidden + self.output(mixed.transpose(1, 2).flatten(2))
        added: Tensor = mixed + self.mlp(mixed)
        return added

    @staticmethod
    def heads(hidden: Tensor) -> Tensor:
        return hidden.unflatten(-1, (4, HIDDEN // 4)).transpose(1, 2)


class Model(nn.Module):
    """Token and position embeddings, layers, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.positions = nn.Embedding(128, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.head(hidden)
        return logits


def main() -> None:
    torch.manual_seed(0)
    model = Model().eval()
    workload = llmpq.Batch(batch_size=4, prompt_len=32, gen_len=1)
    compiled = llmpq.compile(model, "2xCPU", workload, precisions=("w8a16",), assign="assign-even")
    print(compiled)
    ids = torch.randint(VOCABULARY, (4, 32))
    with torch.no_grad():
        expected = model(ids)
    found = compiled.forward(ids).float()
    print(f"largest difference of the logits: {(found - expected).abs().max():.3f}, of logits up to {expected.abs().max():.3f}")


if __name__ == "__main__":
    main()
