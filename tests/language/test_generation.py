"""What language models write: the right distribution, exact log-probabilities, whatever else shares the batch."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from language.corpus import CHATML, tiny, tokenizer
from limbeck.errors import DataError, NeedsError, RecipeError
from limbeck.generation import Alone, Draws, Generated, Mixed, Prompts, Sampling, Speculative, end_tokens, generate
from limbeck.students.language import adapted

VOCABULARY = 50
RAGGED = [[1, 2, 3, 4, 5], [7], [9, 8, 7]]
INDEX = [40, 3, 17]
CRITICAL = 29.9
"""Chi-square's 99.99 % point at 7 degrees of freedom; drawing is from a fixed seed."""


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny(vocabulary=VOCABULARY)


@pytest.fixture(scope="module")
def teacher() -> Any:
    return tiny(3, vocabulary=VOCABULARY)


def written(models: Any, prompts: list[list[int]] = RAGGED, **options: Any) -> Generated:
    options.setdefault("draws", Draws(5, epoch=2, index=INDEX[: len(prompts)]))
    sampling = options.pop("sampling", Sampling(max_new_tokens=12))
    return generate(models, Prompts.of(prompts), sampling, **options)


def teacher_forced(model: nn.Module, prompt: list[int], tokens: list[int]) -> Tensor:
    """Logits at each written token, from one pass over the whole sequence."""
    with torch.no_grad():
        return model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]


@pytest.mark.parametrize("ends", [(), (3, 17)])
def test_greedy_writes_what_transformers_writes(model: Any, ends: tuple[int, ...]) -> None:
    ours = written(model, sampling=Sampling(greedy=True, max_new_tokens=20), ends=ends, draws=None)
    prompts = Prompts.of(RAGGED)
    theirs = model.generate(
        input_ids=prompts.ids, attention_mask=prompts.mask, max_new_tokens=20, do_sample=False, pad_token_id=0,
        eos_token_id=list(ends) or None,
    )[:, prompts.ids.shape[1] :]  # fmt: skip
    assert torch.equal(ours.tokens, theirs[:, : ours.tokens.shape[1]])
    assert ours.ended.tolist() == [bool(set(text) & set(ends)) for text in ours.texts()]


SETTINGS = [
    Sampling(max_new_tokens=12),
    Sampling(max_new_tokens=12, temperature=0.6),
    Sampling(max_new_tokens=12, temperature=1.3, top_k=7, top_p=0.8),
    Sampling(max_new_tokens=12, top_p=0.5),
]


@pytest.mark.parametrize("sampling", SETTINGS)
def test_log_probabilities_are_those_of_one_pass(model: Any, sampling: Sampling) -> None:
    found = written(model, sampling=sampling, samples=2, ends=(3, 4))
    for row, text in enumerate(found.texts()):
        logits = teacher_forced(model, RAGGED[row // 2], text)
        chosen = torch.tensor(text).unsqueeze(1)
        plain = logits.log_softmax(-1).gather(1, chosen)[:, 0]
        drawn = filtered_by_hand(logits, sampling).log_softmax(-1).gather(1, chosen)[:, 0]
        assert torch.allclose(found.logprobs[row, : len(text)], plain, atol=1e-5)
        assert torch.allclose(found.proposal_logprobs[row, : len(text)], drawn, atol=1e-5)
        assert not found.logprobs[row, len(text) :].any()


def filtered_by_hand(logits: Tensor, sampling: Sampling) -> Tensor:
    rows = []
    for row in (logits / sampling.temperature).double():
        order = row.argsort(descending=True)[: sampling.top_k]
        kept, total = [], 0.0
        for token, probability in zip(order.tolist(), row[order].softmax(-1).tolist()):
            if total >= sampling.top_p:
                break
            kept.append(token)
            total += probability
        rows.append(torch.full_like(row, -torch.inf).index_put((torch.tensor(kept),), row[kept]))
    return torch.stack(rows).float()


def small() -> tuple[Any, Any]:
    """A student and a teacher of eight tokens."""
    return tiny(1, vocabulary=8), tiny(2, vocabulary=8)


def chi_square(tokens: Tensor, probabilities: Tensor) -> float:
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    expected = probabilities.double() * len(tokens)
    assert not counts[expected == 0].any()
    there = expected > 0
    return float(((counts[there] - expected[there]).square() / expected[there]).sum())


@pytest.mark.parametrize("policy", [Alone(), Mixed(0.3), Speculative(3)], ids=["alone", "mixed", "speculative"])
@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=2), Sampling(0.7, top_k=6, max_new_tokens=2)])
def test_tokens_come_with_the_probability_that_is_told(policy: Any, sampling: Sampling) -> None:
    models = small()[: policy.models]
    found = written(models, [[1, 2]], sampling=sampling, policy=policy, samples=3000)
    told = {token: float(p) for token, p in zip(found.tokens[:, 0].tolist(), found.proposal_logprobs[:, 0].exp())}
    # Every token that can be drawn was drawn, so what is told adds up to one.
    assert sum(told.values()) == pytest.approx(1.0, abs=1e-5)
    probabilities = torch.tensor([told.get(token, 0.0) for token in range(8)])
    assert chi_square(found.tokens[:, 0], probabilities) < CRITICAL
    first = Counter(found.tokens[:, 0].tolist()).most_common(1)[0][0]
    after = found.tokens[:, 0] == first
    seconds = dict(zip(found.tokens[after, 1].tolist(), found.proposal_logprobs[after, 1].exp().tolist()))
    probabilities = torch.tensor([seconds.get(token, 0.0) for token in range(8)])
    assert chi_square(found.tokens[after, 1], probabilities / probabilities.sum()) < CRITICAL


def test_mixture_and_rule_have_the_probabilities_of_their_definitions() -> None:
    student, teacher = small()
    q, p = (teacher_forced(m, [1, 2], [0])[0].softmax(-1) for m in (student, teacher))
    likeliest = p >= p.topk(3).values[-1]
    definitions = {
        Mixed(0.3): 0.7 * q + 0.3 * p,
        Speculative(3): torch.where(likeliest, q, 0) + q[~likeliest].sum() * p,
    }
    for policy, expected in definitions.items():
        found = written((student, teacher), [[1, 2]], policy=policy, samples=300, sampling=Sampling(max_new_tokens=1))
        told = found.proposal_logprobs[:, 0].exp()
        assert torch.allclose(told, expected[found.tokens[:, 0]], atol=1e-5)
        assert torch.allclose(found.logprobs[:, 0].exp(), q[found.tokens[:, 0]], atol=1e-5)


def test_speculative_ends_are_the_student_and_nearly_the_teacher() -> None:
    student, teacher = small()
    every = written((student, teacher), [[1, 2]], policy=Speculative(8), samples=20)
    assert bool(every.accepted[every.written].all())
    assert torch.allclose(every.logprobs, every.proposal_logprobs, atol=1e-5)
    greedy = written((student, teacher), [[1, 2]], policy=Speculative(1), samples=200)
    best = teacher_forced(teacher, [1, 2], [0])[0].argmax()
    kept = greedy.accepted[:, 0]
    assert bool(kept.any())
    assert bool((greedy.tokens[kept, 0] == best).all())


def test_a_sequence_does_not_depend_on_its_batch(model: Any) -> None:
    whole = written(model, samples=3, ends=(3, 4))
    chunked = written(model, samples=3, ends=(3, 4), rows=3)
    assert whole.texts() == chunked.texts()
    assert torch.allclose(whole.logprobs, chunked.logprobs, atol=1e-5)
    for place, prompt in enumerate(RAGGED):
        alone = written(
            model, [prompt], samples=2, ends=(3, 4), draws=Draws(5, epoch=2, index=INDEX[place : place + 1])
        )
        assert alone.texts() == whole.texts()[3 * place : 3 * place + 2]


def test_draws_of_a_group_epochs_and_seeds_differ(model: Any) -> None:
    texts = written(model, samples=4).texts()
    assert len({tuple(text) for text in texts}) == len(texts)
    for draws in (Draws(6, epoch=2, index=INDEX), Draws(5, epoch=3, index=INDEX), Draws(5, "other", 2, INDEX)):
        assert not set(map(tuple, written(model, draws=draws).texts())) & set(map(tuple, texts))


class Plain(nn.Module):
    """Maps tokens to logits, and knows of no mask, no position and no cache."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids).logits


def test_a_module_without_cache_writes_the_same(model: Any) -> None:
    cached, plain = (written(m, samples=2, ends=(3, 4)) for m in (model, Plain(model)))
    assert cached.texts() == plain.texts()
    assert torch.allclose(cached.logprobs, plain.logprobs, atol=1e-5)


def test_padded_heads_write_true_tokens_only(model: Any) -> None:
    found = written(model, samples=8, vocabulary=5)
    assert int(found.tokens.max()) < 5
    with torch.no_grad():
        logits = model(torch.tensor([RAGGED[0]])).logits[0, -1, :5]
    assert torch.allclose(found.logprobs[:8, 0], logits.log_softmax(-1)[found.tokens[:8, 0]], atol=1e-5)


def test_nothing_of_the_model_changes() -> None:
    model: Any = adapted(tiny(vocabulary=VOCABULARY), checkpointing=True)
    model.train()
    model.model.layers[0].self_attn.attention_dropout = 0.5
    model.model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    found = written(model)
    assert model.training
    assert not model.model.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()
    # Without dropout, and with the cache, which checkpointing forbids in training.
    assert found.texts() == written(tiny(vocabulary=VOCABULARY)).texts()


def test_lora_students_write_with_their_adapters() -> None:
    model: Any = adapted(tiny(vocabulary=VOCABULARY), lora={"rank": 2})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    found = written(model)
    logits = teacher_forced(model, RAGGED[0], found.texts()[0])
    expected = logits.log_softmax(-1).gather(1, found.tokens[0].unsqueeze(1))[:, 0]
    assert torch.allclose(found.logprobs[0], expected, atol=1e-5)
    assert found.texts() != written(tiny(vocabulary=VOCABULARY)).texts()


def test_autocast_and_half_precision(model: Any) -> None:
    half = copy.deepcopy(model).bfloat16()
    for found in (written(model, autocast=torch.bfloat16), written(half)):
        logits = teacher_forced(model, RAGGED[0], found.texts()[0])
        expected = logits.log_softmax(-1).gather(1, found.tokens[0].unsqueeze(1))[:, 0]
        assert found.logprobs.dtype == torch.float32
        assert torch.allclose(found.logprobs[0], expected, atol=0.15)


def test_each_row_has_its_limit(model: Any) -> None:
    found = written(model, limits=torch.tensor([0, 3, 50]))
    assert found.lengths.tolist() == [0, 3, 12]
    assert not found.ended.any()
    assert written(model, limits=torch.tensor([0, 0, 0])).tokens.shape == (3, 0)


def test_ended_rows_and_shared_prompts_take_no_time(model: Any) -> None:
    seen: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        found = written(model, samples=4, ends=(3, 4, 5, 6, 7))
    finally:
        hook.remove()
    # The prompts once, with their padding; then every token but the last of each sequence.
    assert sum(seen) == 3 * 5 + int((found.lengths - 1).sum())


def test_ends_are_told_in_three_places() -> None:
    chat = tokenizer(CHATML)
    chat.backend.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    turn = chat.backend.convert_tokens_to_ids("<|im_end|>")
    model: Any = tiny(vocabulary=VOCABULARY)
    model.generation_config.eos_token_id = [7, 9]
    model.config.eos_token_id = 11
    assert end_tokens(model, chat) == (7, 9, 11, chat.eos_id, turn)
    # Without such a special token, the template's words are no end.
    assert end_tokens(None, tokenizer(CHATML)) == (tokenizer().eos_id,)
    assert end_tokens() == ()


def test_bad_input_is_refused(model: Any, teacher: Any) -> None:
    with pytest.raises(DataError, match="a prompt is empty"):
        Prompts.of([[1], []])
    with pytest.raises(DataError, match="3 prompts, but draws names 2"):
        written(model, draws=Draws(0, index=[1, 2]))
    with pytest.raises(DataError, match="give draws, or set greedy"):
        written(model, draws=None)
    parted = copy.deepcopy(model)
    parted.lm_head.weight.full_tensor = lambda: None
    with pytest.raises(NeedsError, match=r"set train\.sharding to ddp"):
        written(parted)
    with pytest.raises(NeedsError, match="Mixed asks 2 models, but 1 are given"):
        written(model, policy=Mixed(0.5))
    for wrong in ({"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"max_new_tokens": 0}):
        with pytest.raises(RecipeError, match=next(iter(wrong))):
            Sampling(**wrong)


def test_rare_tokens_of_a_large_vocabulary_keep_their_chance() -> None:
    from limbeck.functional.speculative import inverse_cdf

    logits = torch.zeros(1, 200_000)
    uniform = torch.from_numpy(np.arange(0.5, 200_000) / 200_000)
    assert torch.equal(inverse_cdf(logits, uniform[-1:]), torch.tensor([199_999]))
    assert torch.equal(inverse_cdf(logits.squeeze(0).expand(1, -1), uniform[-1000:-999]), torch.tensor([199_000]))
    last = inverse_cdf(torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([1 - 2.0**-53], dtype=torch.float64))
    assert last.tolist() == [1]
