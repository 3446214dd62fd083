"""The adapter for lm-evaluation-harness, against a fake of its interface: the package is not a dependency of the tests."""

import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from llmpq.errors import InputError
from llmpq.scoring import Scorer


class FakeLM:
    """What lm_eval.api.model.LM does for its subclasses, in short."""

    def __init__(self) -> None:
        self.cache_hook = None


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    api = ModuleType("lm_eval.api.model")
    vars(api)["LM"] = FakeLM
    for name, module in (("lm_eval", ModuleType("lm_eval")), ("lm_eval.api", ModuleType("lm_eval.api")), (api.__name__, api)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "llmpq.lm_eval", raising=False)
    yield import_module("llmpq.lm_eval")
    sys.modules.pop("llmpq.lm_eval", None)


def asked(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


class Characters:
    """A tokenizer of one token per character."""

    bos_token_id, eos_token_id = None, 0

    def encode(self, text: str, **options: Any) -> list[int]:
        return [ord(character) % 64 for character in text]


TABLE = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)


class Generator:
    """Stands for a compiled model: says its prompt and a fixed answer."""

    def generate(self, prompt: str, max_new_tokens: int) -> list[str]:
        return [f"{prompt}:{max_new_tokens} and more"]


@pytest.fixture
def model(adapter: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    def scorer(name: str) -> Scorer:
        compiled: Any = Generator() if name == "out" else None
        return Scorer(name, lambda ids: TABLE[torch.tensor(list(ids))], Characters(), 16, compiled)

    monkeypatch.setattr("llmpq.scoring.scorer", scorer)
    return adapter.LlmpqLM


def bigrams(ids: list[int]) -> float:
    return sum(float(TABLE[a, b]) for a, b in pairwise(ids))


def test_a_continuation_is_scored_after_its_context_alone(model: Any) -> None:
    ids = Characters().encode("abc") + Characters().encode("def")
    found = model("demo").loglikelihood([asked("abc", "def"), asked("", "abc"), asked("ab ", "c")])
    assert [value for value, _ in found] == [
        pytest.approx(bigrams(ids[2:]), rel=1e-5),
        pytest.approx(bigrams([0, *ids[:3]]), rel=1e-5),
        pytest.approx(bigrams(Characters().encode("b c")), rel=1e-5),  # the space belongs to what comes after it
    ]


def test_a_context_longer_than_the_model_takes_is_cut_on_the_left(model: Any) -> None:
    assert model("demo").loglikelihood([asked("x" * 40 + "abc", "d")]) == model("demo").loglikelihood([asked("abc", "d")])


def test_the_greedy_continuation_is_known_as_such(model: Any) -> None:
    likeliest = int(TABLE[ord("a") % 64].argmax())
    letters = {code % 64: chr(code) for code in range(64, 128)}
    found = model("demo").loglikelihood([asked("a", letters[likeliest]), asked("a", letters[(likeliest + 1) % 64])])
    assert [greedy for _, greedy in found] == [True, False]


def test_a_whole_text_is_scored_in_windows(model: Any) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    expected = bigrams([0, *Characters().encode(text)])
    assert model("demo").loglikelihood_rolling([asked(text), asked("")]) == [pytest.approx(expected, rel=1e-5), 0.0]


def test_generation_stops_before_the_first_stop_string(model: Any) -> None:
    requests = [asked("hi", {"max_gen_toks": 9, "until": [" more", " and"]}), asked("hi", {"until": ":"}), asked("hi", {})]
    assert model("out").generate_until(requests) == ["hi:9", "hi", "hi:256 and more"]


def test_an_original_model_does_not_generate(model: Any) -> None:
    with pytest.raises(InputError, match="only a compiled output generates"):
        model("demo").generate_until([asked("def", {})])


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "llmpq.lm_eval", raising=False)
    with pytest.raises(InputError, match=r"pip install 'llmpq\[lm-eval\]'"):
        import_module("llmpq.lm_eval")
