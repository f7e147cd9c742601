from __future__ import annotations

import pytest
import torch

from limbeck.errors import NeedsError, RecipeError
from limbeck.signals import Batch, Head, Hidden, Signals, TopK
from limbeck.teachers.router import Router


class Says:
    """A provider that answers each row with a function of its tokens, and counts the rows that it was asked about."""

    def __init__(self, answer) -> None:
        self.answer, self.rows = answer, 0

    def __call__(self, batch: Batch) -> Signals:
        self.rows += batch.size
        return self.answer(batch["inputs"]["input_ids"])

    def start(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def fingerprint(self) -> str:
        return "says"


def logits(ids, scale):
    return scale * torch.arange(5.0) + ids.unsqueeze(-1)


def batch_of(domains) -> Batch:
    size = len(domains)
    ids = torch.arange(3 * size).reshape(size, 3)
    return Batch(inputs={"input_ids": ids}, domain=torch.tensor(domains), index=torch.arange(size), epoch=0)


def test_each_row_is_answered_by_the_teacher_of_its_domain_alone() -> None:
    one, two = Says(lambda ids: Signals(logits=logits(ids, 1.0))), Says(lambda ids: Signals(logits=logits(ids, -2.0)))
    batch = batch_of([1, 0, 0, 1, 0])
    said = Router({"b": two, "a": one}, ("a", "b"))(batch).logits
    ids = batch["inputs"]["input_ids"]
    expected = torch.where((batch["domain"] == 1)[:, None, None], logits(ids, -2.0), logits(ids, 1.0))
    assert torch.equal(said, expected)
    assert (one.rows, two.rows) == (3, 2)
    assert Router({"a": one, "b": two}, ("a", "b"))(batch_of([1, 1])).logits.shape == (2, 3, 5)
    assert (one.rows, two.rows) == (3, 4)


def test_hidden_states_of_different_models_meet_as_logits() -> None:
    heads = [Head(torch.randn(5, width)) for width in (2, 4)]
    members = [
        Says(lambda ids, head=head: Signals(hidden=Hidden(torch.ones(*ids.shape, head.weight.shape[1]), head)))
        for head in heads
    ]
    said = Router(dict(zip("ab", members)), ("a", "b"))(batch_of([0, 1])).logits
    torch.testing.assert_close(said[:, 0], torch.stack([head.weight.sum(1) for head in heads]))


def test_lists_of_the_likeliest_tokens_are_put_side_by_side() -> None:
    def listed(k, shift):
        def answer(ids):
            shape = (*ids.shape, k)
            return Signals(topk=TopK(torch.zeros(shape) - shift, torch.zeros(shape, dtype=torch.long), ids.float(), 5))

        return Says(answer)

    said = Router({"a": listed(2, 0.0), "b": listed(2, 1.0)}, ("a", "b"))(batch_of([1, 0])).topk
    assert said.logprobs[:, 0, 0].tolist() == [-1.0, 0.0]
    assert said.tail[:, 0].tolist() == [0.0, 3.0]
    with pytest.raises(NeedsError, match=r"list \[2, 3\] tokens"):
        Router({"a": listed(2, 0.0), "b": listed(3, 1.0)}, ("a", "b"))(batch_of([1, 0]))
    dense = Says(lambda ids: Signals(logits=logits(ids, 1.0)))
    with pytest.raises(NeedsError, match="all give distributions"):
        Router({"a": dense, "b": listed(3, 1.0)}, ("a", "b"))(batch_of([1, 0]))


def test_domains_and_teachers_that_do_not_match_are_refused() -> None:
    one = Says(lambda ids: Signals(logits=logits(ids, 1.0)))
    with pytest.raises(RecipeError, match="no teacher of the router is for the domain 'code'"):
        Router({"novel": one}, ("novel", "code"))
    with pytest.raises(RecipeError, match=r"'nvel', no domain of the data. Did you mean 'novel'"):
        Router({"novel": one, "nvel": one}, ("novel",))
    with pytest.raises(RecipeError, match="the data has no domains"):
        Router({"novel": one}, ())
    with pytest.raises(NeedsError, match="does not tell it"):
        Router({"novel": one}, ("novel",))(Batch(inputs={"input_ids": torch.ones(1, 1)}, index=torch.arange(1)))


def test_a_router_is_known_by_which_teacher_has_which_domain() -> None:
    one = Says(lambda ids: Signals(logits=logits(ids, 1.0)))
    assert Router({"a": one}, ("a",)).fingerprint() != Router({"b": one}, ("b",)).fingerprint()
