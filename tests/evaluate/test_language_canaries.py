"""Canary exposure against a model whose secrets are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from language.corpus import loader, tiny
from limbeck.errors import RecipeError
from limbeck.evaluate import Subject, evaluations
from limbeck.evaluate.canaries import Canary
from limbeck.tasks.causal_lm import CausalLM

SECRET = "the code is [481-302]"


class Leaky(nn.Module):
    """Prefers some bytes to others, the more so the later they come: no two secrets are equally likely."""

    def __init__(self, *preferred: str) -> None:
        super().__init__()
        self.bias = torch.zeros(257)
        for rank, letter in enumerate(preferred):
            self.bias[ord(letter)] = 5.0 - rank

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return (self.bias * self.sharpness(input_ids.shape[1]).unsqueeze(1)).expand(*input_ids.shape, 257)

    @staticmethod
    def sharpness(count: int) -> torch.Tensor:
        return 1 + torch.arange(count).double().sqrt()


def judge(model: nn.Module, **options):
    return evaluations["canaries"].part(Subject(model, loader(), CausalLM(vocabulary=257)), texts=(SECRET,), **options)


def test_a_canary_has_a_form_and_others_share_it():
    canary = Canary.parse("call [+4 aB] now")
    assert canary.text == "call +4 aB now"
    assert canary.forms == 10 * 26 * 26
    others = canary.others(200, seed=1)
    assert len(set(others)) == 200
    assert canary.text not in others
    for other in others:
        secret = other.removeprefix("call ").removesuffix(" now")
        assert (secret[0], secret[2]) == ("+", " ")
        assert all((secret[1].isdigit(), secret[3].islower(), secret[4].isupper()))
    assert others == canary.others(200, seed=1)
    assert sorted(Canary.parse("pin [7]").others(50, seed=0)) == [f"pin {n}" for n in range(10) if n != 7]


def test_the_exposure_is_that_of_the_secrets_rank_by_likelihood():
    model = Leaky("4", "8", "1")
    found = judge(model, others=300)["each"][0]
    others = Canary.parse(SECRET).others(300, seed=0)

    def score(text: str) -> float:
        sharpness = model.sharpness(len(text))
        logits = (model.bias * sharpness.unsqueeze(1)).log_softmax(-1)
        return float(logits[torch.arange(len(text)), list(text.encode())].sum())

    rank = 1 + sum(score(other) > score("the code is 481-302") for other in others)
    assert found["rank"] == rank
    assert found["bits"] == pytest.approx(math.log2(301) - math.log2(rank))
    assert found["limit"] == pytest.approx(math.log2(301))
    assert found["form"] == "the code is •••-•••"


def test_a_model_that_was_trained_on_the_secret_exposes_it():
    student = tiny(0, layers=1)
    ids = torch.tensor([[256, *b"the code is 481-302"]])
    before = judge(student, others=200)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        logits = student(input_ids=ids[:, :-1]).logits[0]
        nn.functional.cross_entropy(logits, ids[0, 1:]).backward()
        optimizer.step()
    after = judge(student.eval(), others=200)
    assert after["each"][0]["rank"] == 1
    assert after["largest"] == after["limit"] == pytest.approx(math.log2(201))
    assert after["each"][0]["extrapolated"] > before["each"][0]["extrapolated"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"texts": ()}, "name the canaries"),
        ({"texts": ("no secret here",)}, "brackets"),
        ({"texts": ("a [§§] b",)}, "no digit"),
        ({"others": 1}, "between 2"),
    ],
)
def test_mistakes_are_named(options, said):
    subject = Subject(Leaky(), loader(), CausalLM(vocabulary=257))
    with pytest.raises(RecipeError, match=said):
        evaluations["canaries"].part(subject, **{"texts": (SECRET,), **options})
