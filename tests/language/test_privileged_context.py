from __future__ import annotations

import copy
import json

import pytest
import torch

from language.corpus import CHATML, tokenizer
from limbeck.data.text import TextLoader, load_text
from limbeck.engine.roles import Role
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.errors import DataError, RecipeError
from limbeck.methods.base import build_method
from limbeck.signals import Batch
from limbeck.students.language import build_language_model
from limbeck.tasks.causal_lm import CausalLM
from limbeck.transforms import build_transform

SUMS = {"name": "arithmetic", "largest": 40, "operations": ["+", "-"]}
WANTED = frozenset({"hidden|logits"})


def loader(spec=SUMS, *, context=64, batch_size=5, template="", count=30):
    text = load_text({**spec, **({"count": count} if spec is SUMS else {})}, tokenizer(template), context=context)
    return TextLoader(text, batch_size=batch_size, seed=1)


def informed(batches, **options):
    change = build_transform({"name": "privileged_context", **options}, seed=0, num_classes=257)
    change.bind({}, batches)
    return change


def model(seed=0):
    torch.manual_seed(seed)
    made = build_language_model({"name": "llama", "layers": 2, "width": 32, "heads": 4}, vocabulary=257, context=64)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return made.eval()


def said(network, ids):
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "position_ids": torch.arange(len(ids)).unsqueeze(0),
    }
    return CausalLM(vocabulary=257).run(network, inputs, WANTED).hidden.logits()[0]


TEMPLATE = "Known: {solution}.\n{prompt}"


def test_the_teacher_reads_its_own_prompt_before_the_same_completion():
    batches, network = loader(), model()
    plain = next(batches.epoch(0))
    batch = informed(batches, template=TEMPLATE)(plain)
    logits = CausalLM(vocabulary=257).run(network, batch["teacher_inputs"], WANTED).hidden.logits()
    code = batches.source.tokenizer
    for n, index in enumerate(batch["index"].tolist()):
        record = batches.source.records[index]
        prompt = code.encode(f"Known: {record['solution']}.\n{record['prompt']}")
        answer = [*code.encode(record["answer"]), code.eos_id]
        expected = said(network, [*prompt, *answer[:-1]])[len(prompt) - 1 :]
        torch.testing.assert_close(logits[n][batch["teacher_mask"][n]], expected, atol=1e-4, rtol=1e-4)
        # What the student sees is what it saw, and holds nothing of the solution.
        assert code.decode(batch["inputs"]["input_ids"][n].tolist()).startswith(record["prompt"])
        assert "Known" not in code.decode(batch["inputs"]["input_ids"][n].tolist())
    assert all(torch.equal(batch["inputs"][key], plain["inputs"][key]) for key in plain["inputs"])


def opsd_loss(network, batch, **options):
    task = CausalLM(vocabulary=257)
    student = task.run(network, batch["inputs"], WANTED)
    teacher = task.run(network, batch.inputs_for("teacher"), WANTED).detach()
    return build_method("opsd", **options)(batch, student=student, teacher=teacher)["distill"]


def test_without_anything_privileged_there_is_nothing_to_learn():
    batches, network = loader(), model()
    batch = informed(batches, template="{prompt}")(next(batches.epoch(0)))
    term = opsd_loss(network, batch)
    gradients = torch.autograd.grad(term.mean(), list(network.parameters()), allow_unused=True)
    assert term.mean().abs() < 1e-6
    assert all(g is None or g.abs().max() < 1e-4 for g in gradients)
    # With it there is.
    other = informed(batches, template=TEMPLATE)(next(batches.epoch(0)))
    assert opsd_loss(network, other).mean() > 1e-3


def test_prompts_of_different_lengths_give_what_each_gives_alone():
    batches, network = loader(), model()
    change = informed(batches, template=TEMPLATE)
    plain = next(batches.epoch(0))
    together = opsd_loss(network, change(plain)).total()
    alone = sum(opsd_loss(network, change(part)).total() for part in plain.split(plain.size))
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)


def test_the_system_message_of_a_conversation(tmp_path):
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    file = tmp_path / "turns.jsonl"
    file.write_text(json.dumps({"messages": turns, "hint": "two twos"}))
    batches = loader({"name": "jsonl", "path": str(file)}, context=256, batch_size=1, template=CHATML)
    batch = next(batches.epoch(0))
    change = informed(batches, template="{prompt} ({hint})", system="You know sums.")
    seen = change(batch)["teacher_inputs"]["input_ids"][0].tolist()
    code = batches.source.tokenizer
    assert code.decode(seen).startswith(
        "<|im_start|>system\nYou know sums.<|im_end|>\n<|im_start|>user\n2+2? (two twos)<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|"
    )


def test_fields_in_columns_are_no_fields(tmp_path):
    file = tmp_path / "odd.jsonl"
    file.write_text(json.dumps({"prompt": "a{hint}", "completion": "b", "hint": "{prompt}{0.__class__}"}))
    batches = loader({"name": "jsonl", "path": str(file)}, batch_size=1)
    seen = informed(batches, template="{hint}|{prompt}|{}")(next(batches.epoch(0)))["teacher_inputs"]["input_ids"]
    assert batches.source.tokenizer.decode(seen[0].tolist()).startswith("{prompt}{0.__class__}|a{hint}|{}b")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"template": "no field"}, RecipeError, "no {prompt}"),
        ({"template": "{solutoin} {prompt}"}, DataError, "Did you mean 'solution'"),
        ({"template": "x" * 90 + "{prompt}"}, DataError, "the context is 64"),
    ],
)
def test_what_is_wrong_with_a_template_is_said(options, error, text):
    batches = loader()
    with pytest.raises(error, match=text):
        informed(batches, **options)(next(batches.epoch(0)))


def test_several_answers_have_no_single_prompt(tmp_path):
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b")) * 2]
    file = tmp_path / "turns.jsonl"
    file.write_text(json.dumps({"messages": turns}))
    batches = loader({"name": "jsonl", "path": str(file)}, context=256, batch_size=1, template=CHATML)
    with pytest.raises(DataError, match="several answers"):
        informed(batches)(next(batches.epoch(0)))


def trained(method, teacher, steps=3, **options):
    """Trains a student of one step's length with a rollout before the privileged prompt, and returns the stage."""
    batches, network = loader(batch_size=10), model()
    changes = [
        build_transform({"name": "rollout", "max_new_tokens": 4}, seed=0, num_classes=257),
        build_transform({"name": "privileged_context", "template": TEMPLATE}, seed=0, num_classes=257),
    ]
    return Stage(
        method=build_method(method, **options),
        roles={"student": Role(model=network), "teacher": teacher(network)},
        task=CausalLM(vocabulary=257),
        loader=batches,
        settings=TrainSettings(epochs=steps, batch_size=10, optimizer="adamw", lr=0.003),
        transforms=changes,
    )


@pytest.mark.parametrize(
    "teacher",
    [lambda student: Role(model=copy.deepcopy(student)), lambda student: Role(ema_of="student", decay=0.9)],
)
def test_the_student_comes_nearer_to_what_it_says_when_it_knows_more(teacher):
    stage = trained("opsd", teacher, steps=6, temperature=1.0)
    batch: Batch = stage.first_batch()
    before = stage.terms(batch)["distill"].mean().item()
    stage.run()
    assert stage.terms(batch)["distill"].mean().item() < 0.85 * before
