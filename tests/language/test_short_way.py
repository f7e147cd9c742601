"""The short way through Llamas and the cache with room: what they write is what the model's own way writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from language.corpus import tiny
from limbeck.generation import Draws, Generated, Prompts, Sampling, Speculative, generate
from limbeck.generation.cached import CachedDecoder
from limbeck.generation.llama_step import LlamaStep, llama_step
from limbeck.generation.loop import _going
from limbeck.generation.room import Room, make_room
from limbeck.students.language import adapted

VOCABULARY = 50
RAGGED = [[1, 2, 3, 4, 5], [7], [9, 8, 7]]
EVEN = [[1, 2, 3], [7, 4, 1], [9, 8, 7]]
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
SHORT: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, wide heads": ("Llama", {"head_dim": 16, "num_key_value_heads": 4}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, eager": ("Llama", {"attn_implementation": "eager"}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}
LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral, window": ("Mistral", {"sliding_window": 4}),
    "gemma2": ("Gemma2", {"sliding_window": 4, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0}),
    "dynamic rope": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
}


def made(family: str, options: dict[str, Any]) -> Any:
    torch.manual_seed(3)
    sizes = {key: SIZES[key] for key in ("vocab_size", "initializer_range")} if family == "GPT2" else SIZES
    config = getattr(transformers, f"{family}Config")(**{**sizes, **options})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def written(models: Any, prompts: list[list[int]] = RAGGED, **options: Any) -> Generated:
    sampling = Sampling(max_new_tokens=14)
    draws = Draws(5, index=range(len(prompts)))
    return generate(models, Prompts.of(prompts), sampling, draws=draws, samples=2, ends=(3, 4, 5), **options)


@contextmanager
def watched(model: nn.Module) -> Iterator[None]:
    """A hook that the short way would pass by."""
    layer = next(m for m in model.modules() if type(m).__name__.endswith(("Layer", "Block")))
    handle = layer.register_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often models went their own way, and the short one."""
    counts = {"own": 0, "short": 0}
    own, short = CachedDecoder._run, LlamaStep.__call__

    def run(self: CachedDecoder, *given: Any) -> Tensor:
        counts["own"] += 1
        return own(self, *given)

    def step(self: LlamaStep, *given: Any) -> Tensor:
        counts["short"] += 1
        return short(self, *given)

    monkeypatch.setattr(CachedDecoder, "_run", run)
    monkeypatch.setattr(LlamaStep, "__call__", step)
    return counts


def assert_alike(found: Generated, expected: Generated) -> None:
    assert found.texts() == expected.texts()
    assert torch.equal(found.ended, expected.ended)
    assert torch.allclose(found.logprobs, expected.logprobs, atol=1e-5)
    assert int(found.lengths.max()) > 8


@pytest.mark.parametrize("prompts", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("name", SHORT)
def test_the_short_way_writes_what_the_model_writes(name: str, prompts: Any, passes: dict[str, int]) -> None:
    model = made(*SHORT[name])
    with watched(model):
        expected = written(model, prompts)
    steps = passes["own"] - 1
    assert passes["short"] == 0
    for own in (2, 1):
        passes.update(own=0, short=0)
        assert_alike(written(model, prompts), expected)
        # The prompts, and for the first time of a model a token to compare.
        assert passes == {"own": own, "short": steps}


@pytest.mark.parametrize("prompts", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("name", LONG)
def test_other_models_go_their_own_way(name: str, prompts: Any, passes: dict[str, int]) -> None:
    model = made(*LONG[name])
    found = written(model, prompts)
    assert passes["short"] == 0
    for row, text in enumerate(found.texts()):
        whole = torch.tensor([[*prompts[row // 2], *text]])
        with torch.no_grad():
            logits = model(whole).logits[0, len(prompts[row // 2]) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(text).unsqueeze(1))[:, 0]
        assert torch.allclose(found.logprobs[row, : len(text)], expected, atol=1e-5)


def test_adapters_and_two_models(passes: dict[str, int]) -> None:
    student: Any = adapted(made("Llama", {}), lora={"rank": 2})
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    teacher = made("Qwen3", {"head_dim": 16})
    options = {"policy": Speculative(5)}
    found = written((student, teacher), **options)
    assert passes["short"] > 0
    with watched(student.get_base_model()), watched(teacher):
        assert_alike(found, written((student, teacher), **options))
    with student.disable_adapter():
        without = written(student)
    assert_alike(without, written(made("Llama", {})))


def test_a_way_that_leads_elsewhere_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("Llama", {})
    with watched(model):
        expected = written(model)
    step = LlamaStep.__call__
    calls = []

    def astray(self: LlamaStep, *given: Any) -> Tensor:
        calls.append(given)
        return step(self, *given) * 1.05

    monkeypatch.setattr(LlamaStep, "__call__", astray)
    assert_alike(written(model), expected)
    assert len(calls) == 1


def test_replaced_parts_are_not_passed_by() -> None:
    class Changed(type(made("Llama", {}).model.layers[0].mlp)):  # type: ignore[misc]
        pass

    changes = {
        "a forward function": lambda m: setattr(m.model.layers[1].mlp, "forward", lambda x: x),
        "a class": lambda m: setattr(m.model.layers[1].mlp, "__class__", Changed),
        "a hook": lambda m: m.model.norm.register_forward_pre_hook(lambda *_: None),
        "no change": lambda m: None,
    }
    for name, change in changes.items():
        model = made("Llama", {})
        change(model)
        assert (llama_step(model, 8) is not None) == (name == "no change")


def test_half_precision_and_autocast(passes: dict[str, int]) -> None:
    model = tiny(vocabulary=VOCABULARY)
    for options in ({"autocast": torch.bfloat16}, {}):
        subject = model if options else made("Llama", {"dtype": torch.bfloat16})
        passes.update(short=0)
        found = written(subject, **options)
        assert passes["short"] > 0
        with watched(subject):
            expected = written(subject, **options)
        assert found.logprobs.dtype == torch.float32
        assert torch.allclose(found.logprobs[:, 0], expected.logprobs[:, 0], atol=0.02)


def test_training_goes_on_after_writing() -> None:
    model = made("Llama", {}).train()
    found = written(model, autocast=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = (model(found.tokens).logits.float().log_softmax(-1)[..., 0] * found.logprobs).sum()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_rows_that_go_on_stay_in_their_places() -> None:
    goes_on = torch.tensor([True, False, True, False, True, True])
    assert _going(goes_on).tolist() == [0, 4, 2, 5]
    assert _going(torch.tensor([False, False])).tolist() == []
    assert _going(torch.tensor([True, True])).tolist() == [0, 1]


@pytest.mark.parametrize("at_first", [1, 256])
def test_a_cache_with_room_holds_what_another_holds(at_first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.generation.room._AT_FIRST", at_first)
    cache, plain = (transformers.DynamicCache() for _ in range(2))
    keys, values = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 6)
    for one in (cache, plain):
        one.update(keys, values, 0)
    assert not make_room(cache, 5, 2, 1)
    assert make_room(cache, 4, 2, 1)
    plain.batch_repeat_interleave(2)
    for tokens in (1, 1, 4, 2):
        further = torch.randn(4, 3, tokens, 5), torch.randn(4, 3, tokens, 6)
        # The second token is one more than was announced.
        for found, expected in zip(cache.update(*further, 0), plain.update(*further, 0)):
            assert torch.equal(found, expected)
    rows = torch.tensor([0, 3, 2])
    room: Any = cache.layers[0]
    assert isinstance(room, Room)
    room.move(3, torch.tensor([1]), torch.tensor([3]))
    room.forget(2)
    plain.batch_select_indices(rows)
    plain.crop(-2)
    assert torch.equal(room.keys, plain.layers[0].keys)
    assert torch.equal(room.values, plain.layers[0].values)
    assert cache.get_seq_length() == 10


def test_windows_and_other_caches_get_no_room() -> None:
    with torch.no_grad():
        for name in ("mistral, window", "gemma2"):
            model = made(*LONG[name])
            assert not make_room(model(torch.tensor([[1, 2]])).past_key_values, 2, 1, 1)
