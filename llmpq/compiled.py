"""CompiledModel: an output directory that generates, scores and can be exported."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from llmpq.backend import Backend
from llmpq.checkpoint.lowering_file import Lowering
from llmpq.checkpoint.manifest import check_size
from llmpq.checkpoint.output_checks import read_plan, require_stored_as_planned
from llmpq.checkpoint.output_directory import require_output
from llmpq.checkpoint.reader import read_json
from llmpq.checkpoint.replacing import replacing
from llmpq.checkpoint.shards import stage_tensors, tensors_by_name
from llmpq.checkpoint.stage_layout import stage_file
from llmpq.errors import BackendError, CheckpointError, InputError
from llmpq.frontend.cached_graphs import layer_graph_of, traced_module_of
from llmpq.frontend.models import load_tokenizer, resolve, token_ids
from llmpq.frontend.module_files import with_module
from llmpq.generation import OnToken, SamplingParams, TextPieces
from llmpq.graph import LayerGraph
from llmpq.layer_option import parse_options
from llmpq.passmanager import run_passes
from llmpq.plan import ComputeDtype, Plan
from llmpq.printing import format_plan
from llmpq.program import Program, Request

if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from torch import Tensor, nn
    from torch.fx import GraphModule

    from llmpq.answers.explanation import Explanation
    from llmpq.backends.distributed import DistributedBackend
    from llmpq.backends.local import LocalBackend
    from llmpq.backends.processes import ProcessesBackend
    from llmpq.backends.vllm import VllmBackend
    from llmpq.runtime.pipeline_backend import PipelineBackend


GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True)
class CompiledModel:
    """What `compile` wrote and `load` reads back; weights are read when first needed.

    compute_dtype: what stages compute in; "float32" is the reference mode. is_moved: the stages are others than the files.
    """

    directory: Path
    program: Program
    compute_dtype: ComputeDtype
    notices: tuple[str, ...] = ()
    is_moved: bool = False
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
        """Stage `index` with its weights, to be called once per stage.

        They are mapped from its own file alone, which is compared with the manifest first; where the model was planned again,
        from the files that hold its layers.
        """
        import torch

        from llmpq.fused.prepare import prepare_stage
        from llmpq.fx.transfers import send_as

        module: GraphModule = self.program.require("stages")[index]
        held = self._moved_tensors(module) if self.is_moved else stage_tensors(self.directory, index)
        found = module.load_state_dict(held, assign=True, strict=False)
        if found.missing_keys or found.unexpected_keys:
            missing, extra = ", ".join(found.missing_keys) or "nothing", ", ".join(found.unexpected_keys) or "nothing"
            raise CheckpointError(
                f"{self.directory}: of the tensors of stage {index}, {missing} is missing, {extra} too much; "
                "the file is of another model, or a pass adds or drops parameters"
            )
        if self.compute_dtype != self.plan.compute_dtype:
            module.to(getattr(torch, self.compute_dtype))
            send_as(module, getattr(torch, self.compute_dtype))
        module.to(self.torch_devices[index])
        if self.compute_dtype != "float32":
            prepare_stage(module)
        return module.eval().requires_grad_(False)

    def _moved_tensors(self, module: "nn.Module") -> "dict[str, Tensor]":
        """What a stage needs, whatever files have it; a tied head may be stored as the embedding alone."""
        names, head, graph = set(module.state_dict()), f"{self.graph.head}.weight", self.graph
        found = tensors_by_name(self.directory, {*names, *((graph.tied_head,) if graph.tied_head else ())})
        if graph.tied_head and head in names and head not in found:
            found[head] = found[graph.tied_head]
        return {name: tensor for name, tensor in found.items() if name in names}

    def without(self, device: str) -> "CompiledModel":
        """The same weights planned again on the devices that are left (see llmpq.answers.recovery), not read yet."""
        from llmpq.answers.recovery import plan_without

        plan = plan_without(self.graph, self.plan, (device,))
        source = replace(resolve(self.directory, weights=False), name=self.plan.model)
        request = replace(self.program.request, cluster=plan.cluster)
        program = Program(
            self.graph, request, compute_dtype=self.plan.compute_dtype, plan=plan, graph_module=traced_module_of(source)
        )
        lowered = run_passes(program, Lowering.read(self.directory).load(self.directory))
        return CompiledModel(self.directory, lowered, self.compute_dtype, is_moved=True, _keep=self._keep)

    @cached_property
    def torch_devices(self) -> "tuple[torch.device, ...]":
        """Where on this machine each stage runs."""
        from llmpq.runtime.torch_devices import torch_devices

        return torch_devices(self.plan)

    def reference(self) -> "CompiledModel":
        """The same weights, computed in fp32."""
        return replace(load(self.directory), compute_dtype="float32", _keep=self._keep)

    @cached_property
    def backend(self) -> "LocalBackend":
        """All stages in this process."""
        from llmpq.backends.local import LocalBackend

        return LocalBackend(self.plan, self.graph, self.stages.__getitem__, self.compute_dtype)

    def distributed(self, lost_after_s: float | None = None) -> "DistributedBackend":
        """This process's stage among those that torchrun or the launcher started; a context manager."""
        from llmpq.backends.distributed import DistributedBackend
        from llmpq.runtime.heartbeat import patience

        return DistributedBackend(self.plan, self.graph, self.load_stage, self.compute_dtype, patience(lost_after_s))

    def processes(
        self, recover: bool = False, on_notice: Callable[[str], None] | None = None, lost_after_s: float | None = None
    ) -> "ProcessesBackend":
        """A process per stage on this machine, as a `backend` for `generate`; a context manager.

        A stage without a sign of life for `lost_after_s` (10 by default) is lost. recover: when one is, generation goes on, on
        the devices that are left; `on_notice` is told.
        """
        from llmpq.backends.processes import ProcessesBackend
        from llmpq.runtime.heartbeat import patience

        models = [self]

        def plan_again(plan: Plan, device: str) -> "tuple[Plan, Callable[[int], nn.Module]]":
            models.append(models[-1].without(device))
            return models[-1].plan, models[-1].load_stage

        rest = (patience(lost_after_s), plan_again if recover else None, on_notice)
        return ProcessesBackend(self.plan, self.graph, self.load_stage, self.compute_dtype, *rest)

    @contextmanager
    def vllm(self, python: str | None = None) -> "Iterator[VllmBackend]":
        """vLLM serving this model on this machine while inside, as a `backend` for `generate`.

        python: the interpreter that has vLLM, by default that of `make engines`. Raises BackendError with the reasons when
        vLLM cannot run the plan or does not start.
        """
        from llmpq.backends.vllm import VllmBackend
        from llmpq.backends.vllm_environment import server_of

        with TemporaryDirectory(prefix="llmpq-vllm-") as temporary:
            server, _ = server_of(self.export(Path(temporary) / "export", to="vllm", link=True), python)
            with server:
                yield VllmBackend(server)

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
        resume: str | Path | None = None,
    ) -> list[str]:
        """The continuation of each prompt, in this process unless `backend` is another.

        `on_token(sequence, token_id)` is called as tokens arrive. temperature 0 is greedy; top_k 0 and top_p 1 keep every
        token; the same seed gives the same text however the batch is cut. resume: a file that keeps the tokens as they come, on
        the own runtime; what it holds is not generated again. Raises InputError for a prompt too long.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        params = self.sampling(max_new_tokens, temperature, top_k, top_p, seed, stop_at_eos)
        used = backend or self.backend
        more = {} if resume is None else {"resume": Path(resume)}
        generations = used.generate(self.encode(texts), params, on_token, **more)
        return [self.tokenizer.decode(generation.token_ids, skip_special_tokens=True) for generation in generations]

    def stream(
        self, prompts: str | Sequence[str], max_new_tokens: int = 32, *, backend: "PipelineBackend | None" = None, **sampling: Any
    ) -> Iterator[tuple[int, str]]:
        """(index of the prompt, next piece of its continuation) as tokens arrive, in whole characters; options as of `generate`.

        Closing the iterator ends the generation.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        params = self.sampling(max_new_tokens, **sampling)
        pieces = [TextPieces(self.tokenizer) for _ in texts]
        for sequence, token in (backend or self.backend).stream(self.encode(texts), params):
            if piece := pieces[sequence].add(token):
                yield sequence, piece
        yield from ((sequence, rest) for sequence, piece in enumerate(pieces) if (rest := piece.rest()))

    def sampling(
        self,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop_at_eos: bool = True,
    ) -> SamplingParams:
        """What `generate` asks the backend for. Raises InputError for a value out of range."""
        eos = self.eos_token_ids if stop_at_eos else ()
        return SamplingParams(max_new_tokens, temperature, top_k, top_p, seed, eos)

    def check(self, texts: Sequence[str], params: SamplingParams) -> None:
        """Raises what generating would raise for prompts too long or a file missing or cut short, without reading weights."""
        from llmpq.runtime.job import generate_job
        from llmpq.runtime.spec import pipeline_spec, validate

        for index in range(0 if self.is_moved else len(self.plan.stages)):
            check_size(self.directory, stage_file(index, len(self.plan.stages)))
        validate(generate_job(self.encode(texts), params), pipeline_spec(self.plan, self.graph, self.compute_dtype))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; an empty prompt becomes the model's beginning-of-text token."""
        start = [token for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if token is not None]
        return [token_ids(self.tokenizer, text) or start[:1] for text in texts]

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """What ends a text: the tokenizer's token, and those of generation_config.json (models for chats have several)."""
        path = self.directory / GENERATION_FILE
        also = read_json(path).get("eos_token_id") if path.is_file() else None
        named = [self.tokenizer.eos_token_id, *(also if isinstance(also, list) else [also])]
        return tuple(dict.fromkeys(token for token in named if isinstance(token, int)))

    def log_probs(self, token_ids: Sequence[int]) -> "Tensor":
        """[tokens, vocabulary] fp32 log-probabilities of the next token after each position, through all stages."""
        return self._outputs(token_ids)[-1][0].float().log_softmax(-1).cpu()

    def smoke_test(self) -> list[str]:
        """Run a few tokens through every stage, each from its own file; returns their devices, or raises CheckpointError."""
        outputs = self._outputs([token % self.graph.vocab_size for token in range(8)])
        for index, (stage, output) in enumerate(zip(self.plan.stages, outputs)):
            if not bool(output.isfinite().all()):
                place = f"stage {index} ({stage.device})"
                raise CheckpointError(f"{self.directory}: {place} computes NaN or infinity; compile it again")
        return [stage.device for stage in self.plan.stages]

    def _outputs(self, token_ids: Sequence[int]) -> "list[Tensor]":
        """What each stage makes of a sequence, all positions at once and without a cache."""
        import torch

        from llmpq.runtime.kv_cache import PassingCache

        outputs: list[Tensor] = []
        x, positions = torch.tensor([list(token_ids)]), torch.arange(len(token_ids))[None]
        with torch.inference_mode():
            for stage, device in zip(self.stages, self.torch_devices):
                x = stage(x.to(device), None, positions.to(device), PassingCache(self.plan.kv_precision))
                outputs.append(x)
        return outputs

    def forward(self, input_ids: "Tensor", attention_mask: "Tensor | None" = None) -> "Tensor":
        """What the last stage makes of input_ids [batch, tokens]: logits or hidden state of every position, without a cache.

        attention_mask: [batch, tokens], 1 for real tokens; None: all of them. This is how encoders run.
        """
        import torch

        from llmpq.runtime.kv_cache import PassingCache

        ones = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (ones.cumsum(-1) - 1).clamp(min=0)
        x = input_ids
        with torch.inference_mode():
            for stage, device in zip(self.stages, self.torch_devices):
                mask = None if attention_mask is None else attention_mask.to(device)
                x = stage(x.to(device), mask, positions.to(device), PassingCache(self.plan.kv_precision))
        return x

    def export(self, out: str | Path, to: str | None = None, *, link: bool = False) -> Path:
        """Copy the compiled model to `out`, which must not exist or be empty.

        to: "vllm", "transformers", "device-map" or "llama.cpp": as that engine takes it, with what it needs to run the plan;
        an earlier export to it is replaced. link: with a symbolic link to the weights. Raises BackendError with the reasons
        when the engine cannot run the plan.
        """
        target = Path(out)
        if to is not None:
            self._hand_over(to, target, link)
            return target
        if target.resolve().is_relative_to(self.directory.resolve()):
            raise InputError(f"{target}: lies in {self.directory}, which is to be copied; choose another directory")
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise InputError(f"{target}: exists and is not empty; choose another directory")
        with replacing(target, lambda _: False) as directory:
            shutil.copytree(self.directory, directory, dirs_exist_ok=True)
        return target

    def _hand_over(self, engine: str, directory: Path, link: bool) -> None:
        from llmpq.export.target import find_target, write_export
        from llmpq.fx.annotation import annotation_of

        if own := Lowering.read(self.directory).own_names:
            raise BackendError(f"{self.directory} cannot be handed to {engine}", (f"it would run without {', '.join(own)}",))
        modules: dict[str, int] = {}
        for node in self.graph_module.graph.nodes:
            placed = annotation_of(node)
            if node.op == "call_module" and placed is not None:
                modules.setdefault(str(node.target), placed.stage)
        write_export(find_target(engine), self.plan, self.graph, modules, self.directory, directory, link=link)

    def explain(self, *, layer: int | None = None, device: str | None = None) -> "Explanation":
        """Why the plan is as it is: the whole, one layer or one device; `str` of it is what `llmpq explain` prints.

        Raises InputError for a layer that is not there or both at once, ClusterError for an unknown device.
        """
        from llmpq.answers.explanation import explain
        from llmpq.answers.subject import program_of
        from llmpq.explaining import stored_sensitivity

        return explain(program_of(self.graph, self.plan, stored_sensitivity(self.directory)), layer=layer, device=device)

    def __str__(self) -> str:
        return format_plan(self.plan)

    def __repr__(self) -> str:
        return f"CompiledModel({str(self.directory)!r}: {self.plan!r})"

    def __rich__(self) -> "Table":
        """The table that `llmpq compile` prints."""
        from llmpq.commands.output import plan_table

        return plan_table(self.plan)


def load(directory: str | Path, module: "nn.Module | None" = None) -> CompiledModel:
    """The compiled model of an output directory: its plan is read, its graph traced, annotated, cut and lowered; no weights yet.

    module: what was compiled, where it was a module that transformers cannot build; its weights are not used.
    Passes of the user's that it was compiled with run again. Raises CheckpointError when one of them is not there any more,
    or when the directory is not one that `compile` wrote.
    """
    path = Path(directory)
    require_output(path)
    plan = read_plan(path)
    source = with_module(replace(resolve(path, weights=False), name=plan.model), module)
    graph = layer_graph_of(source).with_cache(plan.kv_precision)
    require_stored_as_planned(path, graph, plan)
    request = Request(plan.cluster, plan.workload, parse_options(tuple(dict.fromkeys(plan.options))))
    program = Program(graph, request, compute_dtype=plan.compute_dtype, plan=plan, graph_module=traced_module_of(source))
    return CompiledModel(path, run_passes(program, Lowering.read(path).load(path)), plan.compute_dtype)
