"""PipelineWorker: what vLLM 0.32 lacks on CPU to run an eager pipeline, given to it through `worker_cls`."""

from typing import Any

import torch
from vllm.distributed import get_pp_group  # type: ignore[import-not-found]
from vllm.v1.worker.cpu_worker import CPUWorker  # type: ignore[import-not-found]


class PipelineWorker(CPUWorker):  # type: ignore[misc]
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
