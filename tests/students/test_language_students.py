"""Students made of a teacher: what is left out is what did least, and what did nothing is not missed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from language.corpus import loader, tiny
from limbeck.errors import DataError, RecipeError
from limbeck.students.language import (
    block_influence,
    cut,
    decoder_layers,
    loss_increase,
    narrowed,
    student_from,
    width_importance,
)
from limbeck.students.language.structure import decoder_of


def text(count=6):
    return list(loader(count=count, batch_size=3).epoch(0))


def said(model, batch):
    with torch.no_grad():
        return model(**batch["inputs"], use_cache=False).logits[batch["inputs"]["attention_mask"].bool()]


def blocks_of(model):
    owner, name = decoder_layers(model)
    return getattr(owner, name)


def test_block_influence_is_one_minus_the_cosine_of_what_enters_and_leaves():
    model, batches = tiny(0, layers=3), text()
    found = block_influence(model, batches)
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    for batch in batches:
        with torch.no_grad():
            states = model(**batch["inputs"], output_hidden_states=True, use_cache=False).hidden_states
        # transformers gives the last state after the final norm, so the last block is checked by its own output.
        last = []
        handle = blocks_of(model)[-1].register_forward_hook(lambda m, a, out, into=last: into.append(out))
        said(model, batch)
        handle.remove()
        seen = batch["inputs"]["attention_mask"].bool()
        states = [*states[:-1], last[0].detach()]
        for n in range(3):
            a, b = states[n][seen].double(), states[n + 1][seen].double()
            sums[n] += (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).sum()
        count += int(seen.sum())
    torch.testing.assert_close(found, sums / count, rtol=1e-6, atol=1e-9)


def test_a_block_that_does_nothing_has_no_influence_and_its_loss_is_no_loss():
    model, batches = tiny(0, layers=4), text()
    idle = blocks_of(model)[2]
    with torch.no_grad():
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
    influence, rise = block_influence(model, batches), loss_increase(model, batches)
    assert influence[2] == pytest.approx(0, abs=1e-7)
    assert rise[2] == pytest.approx(0, abs=1e-7)
    assert (influence[[0, 1, 3]] > 0.01).all()
    for scored in ("block_influence", "loss_increase"):
        student = student_from(model, text=lambda: batches, layers=3, scored=scored)
        if scored == "block_influence":
            torch.testing.assert_close(said(student, batches[0]), said(model, batches[0]))
        assert student.config.num_hidden_layers == len(blocks_of(student)) == 3
    assert len(blocks_of(model)) == 4


def test_loss_increase_is_the_loss_without_the_block_less_the_loss_with_it():
    model, batches = tiny(0, layers=3), text()

    def loss(of):
        values, counts = zip(
            *(
                (
                    functional.cross_entropy(
                        of(**b["inputs"]).logits.flatten(0, 1), b["labels"].flatten(), reduction="sum"
                    ).item(),
                    int(b["mask"].sum()),
                )
                for b in batches
            )
        )
        return sum(values) / sum(counts)

    expected = [loss(student_from(model, layers=[n for n in range(3) if n != left])) - loss(model) for left in range(3)]
    torch.testing.assert_close(loss_increase(model, batches), torch.tensor(expected).double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 3)], ids=str)
def test_heads_and_neurons_that_do_nothing_are_not_missed(heads):
    total, groups = heads
    model, batches = tiny(0, width=48, heads=total, kv_heads=groups, inner=40), text()
    decoder, share = decoder_of(model), total // groups
    size = decoder.head_width
    with torch.no_grad():
        for number, block in enumerate(decoder.blocks):
            idle_group = number % groups
            for head in range(total):
                if head // share == idle_group:
                    block.self_attn.o_proj.weight[:, head * size : (head + 1) * size] = 0
            block.self_attn.v_proj.weight[idle_group * size : (idle_group + 1) * size] = 0
            block.mlp.up_proj.weight[number::2] = 0
    student = student_from(model, text=lambda: batches, kv_heads=groups - 1, inner=20)
    config = student.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (total - share, groups - 1)
    assert (config.head_dim, config.intermediate_size) == (size, 20)
    torch.testing.assert_close(said(student, batches[0]), said(model, batches[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_hidden_channels_that_are_zero_are_not_missed(tied):
    model, batches = tiny(0, width=32, heads=4, tied=tied), text()
    idle = torch.arange(0, 32, 4)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, idle] = 0
        for block in blocks_of(model):
            block.self_attn.o_proj.weight[idle] = 0
            block.mlp.down_proj.weight[idle] = 0
    student = student_from(model, text=lambda: batches, width=24)
    assert (student.get_output_embeddings().weight is student.get_input_embeddings().weight) is tied
    assert student.config.hidden_size == 24
    # Exact only because norms are rescaled to the channels that are left.
    torch.testing.assert_close(said(student, batches[0]), said(model, batches[0]), rtol=1e-5, atol=1e-5)


def test_a_narrow_student_is_what_plain_transformers_loads(tmp_path):
    from transformers import AutoModelForCausalLM

    model, batches = tiny(0, layers=3, heads=4, kv_heads=2), text()
    student = student_from(model, text=lambda: batches, layers=2, scored="loss_increase", heads=2, inner=56, width=20)
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(said(again.eval(), batches[0]), said(student, batches[0]))
    prompt = batches[0]["inputs"]["input_ids"][:1, :4]
    written = [m.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0) for m in (student, again)]
    assert torch.equal(*written)


def test_importance_counts_tokens_and_not_padding():
    model, batches = tiny(0), text()
    found = width_importance(model, batches)
    longer = copy.deepcopy(batches)
    for batch in longer:
        for key, value in batch["inputs"].items():
            batch["inputs"][key] = functional.pad(value, (0, 5), value=0)
    again = width_importance(model, longer)
    for name in ("heads", "inner", "width"):
        torch.testing.assert_close(getattr(again, name), getattr(found, name), rtol=1e-4, atol=1e-6)


def test_gradients_reach_every_part_of_a_narrow_student():
    student = student_from(tiny(0), text=text, layers=1, heads=2, inner=32, width=16)
    batch = text()[0]
    student(**batch["inputs"], labels=batch["labels"]).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in student.parameters())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"heads": 3}, "multiple of 2"),
        ({"heads": 4, "kv_heads": 1}, "serves 1 to 2 heads"),
        ({"heads": 5}, "keep 1 to 4"),
        ({"inner": 0}, "keep 1 to"),
        ({"width": 33}, "keep 1 to 32"),
        ({"layers": 9, "scored": "loss_increase"}, "1 to 2"),
        ({"layers": 1, "scored": "block_influense"}, "block_influence"),
        ({"scored": "block_influence"}, "how many to keep"),
    ],
    ids=str,
)
def test_parts_that_cannot_be_kept_are_refused(parts, message):
    with pytest.raises(RecipeError, match=message):
        student_from(tiny(0), text=text, **parts)


def test_scoring_needs_text():
    with pytest.raises(RecipeError, match="scored on text"):
        student_from(tiny(0), inner=8)
    with pytest.raises(DataError, match="no text"):
        student_from(tiny(0), text=list, inner=8)


def test_models_of_another_kind_are_refused_by_name():
    from transformers import GemmaConfig, GemmaForCausalLM, GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=16, n_layer=2, n_head=2, n_positions=64))
    with pytest.raises(RecipeError, match=r"no self_attn\.q_proj"):
        cut(gpt2, text=text, heads=1)
    shape = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    gemma = GemmaForCausalLM(GemmaConfig(**shape, num_attention_heads=2, num_key_value_heads=1))
    with pytest.raises(RecipeError, match="'gemma'"):
        narrowed(copy.deepcopy(gemma), width_importance(gemma, text()), width=8)
    assert cut(gemma, text=text, inner=12).config.intermediate_size == 12
