"""quantization_config: groups, formats, and the way back; accepted by compressed-tensors."""

from llmpq.checkpoint.quantization_config import module_precisions, quantization_config
from llmpq.precision import PRECISIONS

W8A8, W8A16, W4A16, W16 = (PRECISIONS[name] for name in ("w8a8", "w8a16", "w4a16", "16"))


def test_nothing_quantized_means_no_config_at_all() -> None:
    assert quantization_config({"a": (W16, 64)}, ["a"]) is None
    assert module_precisions({"hidden_size": 8}) == {}


def test_one_group_for_each_precision_and_group_size_with_exact_targets() -> None:
    modules = {
        "l.0.q": (W4A16, 256),
        "l.0.down": (W4A16, 96),
        "l.1.q": (W8A8, 256),
        "l.1.down": (W8A8, 96),
        "l.2.q": (W4A16, 128),
    }
    config = quantization_config(modules, ["lm_head"])
    assert config is not None
    summary = {
        tuple(group["targets"]): (group["weights"]["strategy"], group["weights"]["group_size"], group["format"])
        for group in config["config_groups"].values()
    }
    assert summary == {
        ("l.0.down",): ("group", 32, "pack-quantized"),
        ("l.0.q", "l.2.q"): ("group", 128, "pack-quantized"),
        ("l.1.q", "l.1.down"): ("channel", None, "int-quantized"),
    }
    assert (config["format"], config["ignore"], config["quantization_status"]) == ("mixed-precision", ["lm_head"], "compressed")


def test_a_single_format_is_the_format_of_the_whole() -> None:
    packed = quantization_config({"a": (W4A16, 128), "b": (W8A16, 128)}, [])
    integers = quantization_config({"a": (W8A8, 128)}, [])
    assert packed is not None and integers is not None
    assert (packed["format"], integers["format"]) == ("pack-quantized", "int-quantized")


def test_a_row_without_a_divisor_is_one_channel() -> None:
    config = quantization_config({"a": (W4A16, 130), "b": (W4A16, 211)}, [])
    assert config is not None
    strategies = {group["targets"][0]: group["weights"]["strategy"] for group in config["config_groups"].values()}
    assert strategies == {"a": "group", "b": "channel"}


def test_the_precision_of_every_module_is_read_back() -> None:
    modules = {"a": (W8A8, 64), "b": (W8A16, 64), "c": (W4A16, 64), "d": (PRECISIONS["w3a16"], 64), "e": (W16, 64)}
    config = {"quantization_config": quantization_config(modules, ["e"])}
    assert module_precisions(config) == {name: precision for name, (precision, _) in modules.items() if precision is not W16}


def test_compressed_tensors_parses_the_config_and_matches_names_exactly() -> None:
    import torch
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_targets

    config = quantization_config({"model.layers.1.q": (W4A16, 128), "model.layers.2.q": (W8A8, 128)}, ["lm_head"])
    parsed = QuantizationConfig.model_validate(config)
    linear = torch.nn.Linear(1, 1)
    matched = {
        name: [group for group, scheme in parsed.config_groups.items() if match_targets(name, linear, scheme.targets)]
        for name in ("model.layers.1.q", "model.layers.2.q", "model.layers.11.q", "lm_head")
    }
    assert matched == {"model.layers.1.q": ["group_0"], "model.layers.2.q": ["group_1"], "model.layers.11.q": [], "lm_head": []}
    assert parsed.config_groups["group_1"].input_activations.dynamic is True
