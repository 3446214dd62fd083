"""CompiledModel: an output directory that generates, scores and can be exported."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpq.backend import Backend
from llmpq.checkpoint.manifest import is_output
from llmpq.checkpoint.output_checks import read_plan
from llmpq.checkpoint.shards import stage_tensors
from llmpq.errors import CheckpointError, InputError
from llmpq.frontend.models import load_tokenizer, resolve, token_ids, trace_source
from llmpq.generation import OnToken, SamplingParams
from llmpq.graph import LayerGraph
from llmpq.passmanager import LOWERING, parse_pipeline, run_passes
from llmpq.plan import ComputeDtype, Plan
from llmpq.precision import parse_precisions
from llmpq.printing import format_plan
from llmpq.program import Program, Request

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import GraphModule

    from llmpq.backends.distributed import DistributedBackend


@dataclass(frozen=True)
class CompiledModel:
    """What `compile` wrote and `load` reads back; weights are read when first needed.

    compute_dtype: what stages compute in; "float32" is the reference mode.
    """

    directory: Path
    program: Program
    compute_dtype: ComputeDtype
    notices: tuple[str, ...] = ()
    _keep: Any = field(default=None, repr=False, compare=False)

    @property
    def plan(self) -> Plan:
        plan: Plan = self.program.require("plan")
        return plan

    @property
    def graph(self) -> LayerGraph:
        return self.program.graph

    @property
    def graph_module(self) -> "GraphModule":
        """The annotated torch.fx graph, before it is cut (without weights)."""
        module: GraphModule = self.program.require("graph_module")
        return module

    @cached_property
    def stages(self) -> "tuple[nn.Module, ...]":
        """The GraphModules that run, with their weights."""
        return tuple(self.load_stage(index) for index in range(len(self.plan.stages)))

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.directory)

    def load_stage(self, index: int) -> "nn.Module":
        """Stage `index` with its weights, read from its own file alone; to be called once per stage."""
        import torch

        module: nn.Module = self.program.require("stages")[index]
        module.load_state_dict(stage_tensors(self.directory, index), assign=True, strict=True)
        if self.compute_dtype != self.plan.compute_dtype:
            module.to(getattr(torch, self.compute_dtype))
        return module.eval().requires_grad_(False)

    def reference(self) -> "CompiledModel":
        """The same weights, computed in fp32."""
        return replace(load(self.directory), compute_dtype="float32", _keep=self._keep)

    @cached_property
    def backend(self) -> Backend:
        """All stages in this process."""
        from llmpq.backends.local import LocalBackend

        return LocalBackend(self.plan, self.graph, self.stages.__getitem__, self.compute_dtype)

    def distributed(self) -> "DistributedBackend":
        """This process's stage among those that torchrun or the launcher started; a context manager."""
        from llmpq.backends.distributed import DistributedBackend

        return DistributedBackend(self.plan, self.graph, self.load_stage, self.compute_dtype)

    def generate(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int = 32,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop_at_eos: bool = True,
        on_token: OnToken | None = None,
        backend: Backend | None = None,
    ) -> list[str]:
        """The continuation of each prompt, in this process unless `backend` is another.

        `on_token(sequence, token_id)` is called as tokens arrive. temperature 0 is greedy; top_k 0 and top_p 1 keep every
        token; the same seed gives the same text however the batch is cut. Raises InputError for a prompt too long.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        eos = self.eos_token_ids if stop_at_eos else ()
        params = SamplingParams(max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, eos_token_ids=eos)
        generations = (backend or self.backend).generate(self.encode(texts), params, on_token)
        return [self.tokenizer.decode(generation.token_ids, skip_special_tokens=True) for generation in generations]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; an empty prompt becomes the model's beginning-of-text token."""
        encoded = [token_ids(self.tokenizer, text) for text in texts]
        start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        return [ids or [start] for ids in encoded]

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        eos = self.tokenizer.eos_token_id
        return () if eos is None else (eos,)

    def log_probs(self, token_ids: Sequence[int]) -> "Tensor":
        """[tokens, vocabulary] fp32 log-probabilities of the next token after each position, through all stages."""
        import torch

        from llmpq.runtime.kv_cache import PassingCache

        ids = torch.tensor([list(token_ids)])
        x, positions = ids, torch.arange(ids.shape[1])[None]
        with torch.inference_mode():
            for stage in self.stages:
                x = stage(x, None, positions, PassingCache())
        return x[0].float().log_softmax(-1)

    def smoke_test(self) -> list[str]:
        """Run a few tokens through every stage, each from its own file; returns their devices, or raises CheckpointError."""
        import torch

        from llmpq.runtime.kv_cache import PassingCache

        x, positions = torch.arange(8)[None] % self.graph.vocab_size, torch.arange(8)[None]
        with torch.inference_mode():
            for index, stage in enumerate(self.plan.stages):
                x = self.stages[index](x, None, positions, PassingCache())
                if not bool(x.isfinite().all()):
                    raise CheckpointError(
                        f"{self.directory}: stage {index} ({stage.device}) computes NaN or infinity; compile it again"
                    )
        return [stage.device for stage in self.plan.stages]

    def export(self, out: str | Path) -> Path:
        """Copy the compiled model to `out`, which must not exist or be empty."""
        target = Path(out)
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise InputError(f"{target}: exists and is not empty; choose another directory")
        shutil.copytree(self.directory, target, dirs_exist_ok=True)
        return target

    def __str__(self) -> str:
        return format_plan(self.plan)


def load(directory: str | Path) -> CompiledModel:
    """The compiled model of an output directory: its plan is read, its graph traced, annotated, cut and lowered; no weights yet.

    Raises CheckpointError when the directory is not one that `compile` wrote.
    """
    path = Path(directory)
    if not is_output(path):
        raise InputError(f"{path}: is not a compiled model; `llmpq compile MODEL --cluster C -o {path}` makes one")
    plan = read_plan(path)
    graph_module, graph = trace_source(resolve(path, weights=False))
    request = Request(plan.cluster, plan.workload, parse_precisions(tuple(dict.fromkeys(plan.options))))
    program = Program(graph, request, compute_dtype=plan.compute_dtype, plan=plan, graph_module=graph_module)
    return CompiledModel(path, run_passes(program, parse_pipeline(LOWERING)), plan.compute_dtype)
