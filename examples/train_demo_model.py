"""Train the bundled demo model: a small Llama (or OPT) on the source of the Python standard library.

    python examples/train_demo_model.py --out build/demo                # the bundled model
    python examples/train_demo_model.py --arch opt --out build/demo-opt

Random weights say nothing about quantization, so llmpq ships a model that was really trained. Everything comes from the
running interpreter: no download. The texts that calibrate, tune and report are files that training never saw.
"""

import argparse
import copy
import hashlib
import json
import math
import platform
import re
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 2048
SPLITS = ("calibrate", "tune", "report")
TEXT_BYTES = 96 * 1024
FILE_BYTES = 8 * 1024  # of each held-out file, so that no single one dominates a text
SKIPPED = ("site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__", "lib2to3", "turtledemo")
RULE = re.compile(r"^\s*#?\s*([-=*#~_+.])\1{3,}")
TABLE = re.compile(r"^\s*[\[({]*\s*(0x[0-9a-fA-F]+|b?['\"][^'\"]{0,12}['\"]|-?\d+)\s*[,:]")


def clean(source: str) -> str | None:
    """The file without banners, rules and trailing space; None when it is mostly a data table."""
    lines = [line.rstrip() for line in source.expandtabs(4).splitlines()]
    lines = [line for line in lines if not RULE.match(line)]
    while lines and (not lines[0] or lines[0].startswith("#")):
        lines.pop(0)
    if len(lines) < 20 or sum(bool(TABLE.match(line)) for line in lines) > 0.1 * len(lines):
        return None
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines)) + "\n"


def corpus() -> tuple[list[str], dict[str, str]]:
    """Training documents, and one held-out text per split; a file's hash decides where it goes."""
    root = Path(sysconfig.get_path("stdlib"))
    training: list[str] = []
    held_out: dict[str, list[str]] = {name: [] for name in SPLITS}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if any(part in SKIPPED for part in path.parts[len(root.parts) :]):
            continue
        text = clean(path.read_text(encoding="utf-8", errors="ignore"))
        if text is None or not text.isascii():
            continue
        bucket = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 24
        (held_out[SPLITS[bucket]] if bucket < len(SPLITS) else training).append(text)
    return training, {name: "\n".join(text[:FILE_BYTES] for text in texts)[:TEXT_BYTES] for name, texts in held_out.items()}


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE that keeps a newline and its indentation together."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, model_max_length=1024
    )


def build_model(arch: str) -> PreTrainedModel:
    """5 M parameters: 12 layers, hidden 192, ffn 512 (llama) or 768 (opt), tied embeddings."""
    shared = {"vocab_size": VOCABULARY, "hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if arch == "opt":
        config = OPTConfig(
            **shared,
            **ids,
            ffn_dim=768,
            word_embed_proj_dim=192,
            max_position_embeddings=1024,
            dropout=0.0,
            tie_word_embeddings=True,
        )
        return OPTForCausalLM(config)
    return LlamaForCausalLM(
        LlamaConfig(
            **shared,
            **ids,
            head_dim=64,
            num_key_value_heads=1,
            intermediate_size=512,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
    )


def batches(tokens: Tensor, batch_size: int, length: int, seed: int) -> Iterator[Tensor]:
    """[batch_size, length] windows of the token stream, every window once per epoch, in a seeded order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        offset = int(torch.randint(length, (), generator=generator))
        windows = tokens[offset : offset + (len(tokens) - offset) // length * length].view(-1, length)
        order = torch.randperm(len(windows), generator=generator)
        for chunk in order.split(batch_size):
            if len(chunk) == batch_size:
                yield windows[chunk]


def optimizers(model: PreTrainedModel, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, norms and biases."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in n)]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def cross_entropy(model: PreTrainedModel, tokens: Tensor, length: int) -> float:
    """Nats per token over disjoint windows, in fp32."""
    model.eval()
    with torch.no_grad():
        losses = [float(model(w[None], labels=w[None]).loss) for w in tokens[: len(tokens) // length * length].view(-1, length)]
    model.train()
    return sum(losses) / len(losses)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path, record: dict[str, object]) -> None:
    """bf16 safetensors, tokenizer and the training record."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    documents, texts = corpus()
    tokenizer = train_tokenizer(documents)
    stream = "".join(END_OF_TEXT + text for text in documents)
    tokens = torch.tensor(tokenizer.encode(stream))
    held_out = {name: torch.tensor(tokenizer.encode(text)) for name, text in texts.items()}
    model = build_model(args.arch)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(documents)} files, {len(tokens):,} tokens, {parameters:,} parameters", file=sys.stderr)

    (args.out / "texts").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (args.out / "texts" / f"{name}.txt").write_text(text)

    opts = optimizers(model, args.lr)
    stream_of_batches = batches(tokens, args.batch_size, args.length, args.seed)
    started = time.perf_counter()
    for step in range(args.steps):
        warmup, cooldown = min(1.0, (step + 1) / 50), min(1.0, (args.steps - step) / (0.4 * args.steps))
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = args.lr * warmup * cooldown
        batch = next(stream_of_batches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(batch, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        if step % 25 == 0:
            rate = (step + 1) * batch.numel() / (time.perf_counter() - started)
            print(f"step {step} loss {loss.item():.3f} {rate:,.0f} tokens/s", file=sys.stderr, flush=True)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            record = {
                "arch": args.arch,
                "parameters": parameters,
                "corpus": f"Python {platform.python_version()} standard library, tests and data tables left out",
                "corpus_tokens": len(tokens),
                "trained_tokens": (step + 1) * batch.numel(),
                "epochs": round((step + 1) * batch.numel() / len(tokens), 2),
                "seconds": round(time.perf_counter() - started),
                "threads": torch.get_num_threads(),
                "training_loss": round(loss.item(), 4),
                "held_out_loss_nats_per_token": {k: round(cross_entropy(model, v, args.length), 4) for k, v in held_out.items()},
                "bytes_per_token": round(len(texts["report"]) / len(held_out["report"]), 3),
                "command": "python examples/train_demo_model.py " + " ".join(sys.argv[1:]),
            }
            save(model, tokenizer, args.out, record)
            print(
                json.dumps(record["held_out_loss_nats_per_token"]),
                f"perplexity e^loss {math.exp(loss.item()):.2f}",
                file=sys.stderr,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=("llama", "opt"), default="llama")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=400)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
