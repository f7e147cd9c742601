from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from language.corpus import loader, sequences, source, tiny, tokenizer
from limbeck.data.text import Encoded, TextLoader, TextSource
from limbeck.errors import DataError, NeedsError, RecipeError
from limbeck.students.language import add_lora, build_language_model
from limbeck.tasks.causal_lm import CausalLM, output_layer

LOGITS, HIDDEN = frozenset({"logits"}), frozenset({"hidden"})


def batches(**options):
    return next(loader(**options).epoch(0))


def nll(logits, batch):
    rows, places = batch["mask"].nonzero(as_tuple=True)
    return -logits.log_softmax(-1)[rows, places, batch["labels"][rows, places]]


def test_each_label_is_the_next_token_and_only_the_completion_counts():
    batch = batches()
    for row, sequence in enumerate(sequences()):
        count = len(sequence) - 1
        assert batch["inputs"]["input_ids"][row, :count].tolist() == sequence.ids[:-1].tolist()
        assert batch["mask"][row].sum() == len(sequence) - 2
        # The first token of the completion is predicted at the last position of the prompt.
        assert batch["labels"][row, 1:count].tolist() == sequence.ids[2:].tolist()
        assert batch["labels"][row, 0] == -100
        assert (batch["labels"][row, count:] == -100).all()


def test_the_loss_moves_exactly_where_a_completion_token_is_predicted():
    """Row 25: the label mask is shifted with the labels."""
    batch = batches(count=1)
    sequence = sequences(1)[0]
    logits = torch.randn(1, batch["labels"].shape[1], 257, dtype=torch.float64)
    before = nll(logits, batch).sum()
    moved = []
    for place in range(logits.shape[1]):
        changed = logits.clone()
        changed[0, place, 5] += 1.0
        if nll(changed, batch).sum() != before:
            moved.append(place)
    assert moved == list(range(1, len(sequence) - 1))


def test_padding_changes_nothing():
    """Row 26: ragged prompts, any amount of padding."""
    model, task = tiny(), CausalLM()
    together = batches()
    said = task.run(model, together["inputs"], LOGITS).logits
    data = source()
    for row in range(len(data)):
        alone = TextLoader(data, batch_size=1, shuffle=False).batch(np.array([row]), 0)
        own = task.run(model, alone["inputs"], LOGITS).logits
        count = len(data.sequences[row]) - 1
        torch.testing.assert_close(said[row, :count], own[0, :count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pad", [256, 7])
def test_the_token_that_ends_a_document_is_learnt_though_it_pads(pad):
    """Row 27: padding is told by masks, not by ids."""
    tokens = tokenizer()
    tokens.backend.pad_token = tokens.backend.convert_ids_to_tokens(pad)
    ids = np.array([pad, 1, 2, tokens.eos_id])
    data = TextSource("two", [Encoded(ids, np.arange(4) >= 2, 2)], tokens, context=16)
    batch = TextLoader(data, batch_size=1).batch(np.array([0]), 0)
    assert batch["labels"][0].tolist() == [-100, 2, tokens.eos_id, -100, -100, -100, -100, -100]
    assert batch["inputs"]["attention_mask"][0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_sequences_do_not_see_each_other(attention):
    model, task = tiny(attention=attention), CausalLM()
    packed, plain = source(packed=True), source()
    rows = TextLoader(packed, batch_size=len(packed), shuffle=False)
    assert len(packed) < len(plain)
    batch = next(rows.epoch(0))
    said = task.run(model, batch["inputs"], LOGITS).logits
    for row, members in enumerate(packed.rows):
        start = 0
        for number in members:
            alone = TextLoader(plain, batch_size=1, shuffle=False).batch(np.array([number]), 0)
            count = len(plain.sequences[number]) - 1
            own = task.run(model, alone["inputs"], LOGITS).logits[0, :count]
            torch.testing.assert_close(said[row, start : start + count], own, rtol=1e-4, atol=1e-5)
            assert torch.equal(batch["labels"][row, start : start + count], alone["labels"][0, :count])
            start += count


def test_without_the_mask_packed_sequences_would_see_each_other():
    """The test above can fail: the same rows as one sequence give other logits."""
    model, task = tiny(), CausalLM()
    packed = source(packed=True)
    batch = next(TextLoader(packed, batch_size=len(packed), shuffle=False).epoch(0))
    right = task.run(model, batch["inputs"], LOGITS).logits
    wrong = model(input_ids=batch["inputs"]["input_ids"]).logits
    second = len(packed.sequences[packed.rows[0][0]]) - 1
    assert (right[0, second + 1] - wrong[0, second + 1]).abs().max() > 1e-2


def test_a_model_without_a_mask_cannot_take_packed_rows():
    class Plain(nn.Module):
        def forward(self, tokens):
            return nn.functional.one_hot(tokens, 257).float()

    with pytest.raises(NeedsError, match="packed"):
        CausalLM().run(Plain(), batches(packed=True)["inputs"], LOGITS)
    assert CausalLM().run(Plain(), batches()["inputs"], LOGITS).logits.shape[-1] == 257


def test_a_packed_row_longer_than_a_sliding_window_is_refused():
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=257, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=16,
    )  # fmt: skip
    with pytest.raises(NeedsError, match="sliding window"):
        CausalLM().run(MistralForCausalLM(config), batches(packed=True)["inputs"], LOGITS)


def _configured(kind):
    import transformers

    shape = {
        "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(1)
    if kind == "gemma2":
        config = transformers.Gemma2Config(**shape, head_dim=8, final_logit_softcapping=2.0)
        return transformers.Gemma2ForCausalLM(config).eval()
    if kind == "cohere":
        return transformers.CohereForCausalLM(transformers.CohereConfig(**shape, logit_scale=0.25)).eval()
    if kind == "granite":
        return transformers.GraniteForCausalLM(transformers.GraniteConfig(**shape, logits_scaling=8.0)).eval()
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere", "granite"])
def test_bug_07_hidden_states_and_head_make_the_models_own_logits(kind):
    """Row 7: softcap and logit scale. The vocabulary is the true one."""
    model, batch = _configured(kind), batches()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
        dense = CausalLM(vocabulary=257).run(model, batch["inputs"], LOGITS)
        lean = CausalLM(vocabulary=257).run(model, batch["inputs"], HIDDEN)
    assert dense.logits.shape[-1] == 257
    assert lean.present() == {"hidden"}
    torch.testing.assert_close(lean.hidden.logits(), dense.logits, rtol=1e-4, atol=1e-5)
    assert output_layer(model).forward.__self__ is output_layer(model)


def test_padded_rows_of_the_head_take_no_part():
    """Rows 11 and 12: what stands in rows beyond the vocabulary changes nothing."""
    model, batch = _configured("llama"), batches()
    before = CausalLM(vocabulary=257).run(model, batch["inputs"], LOGITS).logits
    with torch.no_grad():
        model.lm_head.weight[257:] = 100.0
    after = CausalLM(vocabulary=257).run(model, batch["inputs"], LOGITS).logits
    assert torch.equal(before, after)


def test_a_head_smaller_than_the_vocabulary_is_refused():
    for wanted in (LOGITS, HIDDEN):
        with pytest.raises(DataError, match="do not belong together"):
            CausalLM(vocabulary=300).run(tiny(), batches()["inputs"], wanted)


@pytest.mark.parametrize("key", ["context", "vocabulary"])
def test_a_model_made_here_takes_its_sizes_from_the_data_alone(key):
    with pytest.raises(RecipeError, match=f"its {key} is that of the data .*remove '{key}'"):
        build_language_model({"name": "llama", key: 300}, vocabulary=257, context=32)


def test_an_adapter_on_the_head_is_in_the_hidden_signal_and_gets_a_gradient():
    """Row 8: LoRA on the output layer."""
    model = add_lora(tiny(tied=False), rank=2, targets=["lm_head", "q_proj"])
    layer = output_layer(model)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    batch = batches()
    dense = CausalLM().run(model, batch["inputs"], LOGITS).logits
    lean = CausalLM().run(model, batch["inputs"], HIDDEN).hidden
    torch.testing.assert_close(lean.logits(), dense, rtol=1e-4, atol=1e-5)
    lean.logits().logsumexp(-1).sum().backward()
    assert layer.lora_A["default"].weight.grad.abs().sum() > 0
    assert layer.lora_B["default"].weight.grad.abs().sum() > 0
    assert layer.base_layer.weight.grad is None


def test_checkpointing_gives_the_same_gradients():
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        spec = {"name": "llama", "layers": 2, "width": 32, "heads": 4, "checkpointing": checkpointing}
        model = build_language_model(spec, vocabulary=257, context=64).train()
        batch = batches()
        nll(CausalLM().run(model, batch["inputs"], LOGITS).logits, batch).mean().backward()
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


def test_labels_outside_the_vocabulary_and_a_mask_that_differs_are_refused():
    batch = batches()
    with pytest.raises(DataError, match=r"outside 0\.\.9"):
        CausalLM().check(batch, 10)
    batch["mask"] = torch.ones_like(batch["mask"])
    with pytest.raises(DataError, match="mask"):
        CausalLM().check(batch, None)
