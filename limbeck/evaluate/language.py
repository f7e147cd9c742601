"""Evaluations of language models: loss, fidelity to the teacher, samples of what they write, size."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from limbeck.data.text import TextLoader
from limbeck.errors import DataError
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.predictions import evaluation_mode
from limbeck.evaluate.tokens import Tokens, measure_tokens, perplexity

TASK = "causal-lm"
DEFAULT = ("token_loss", "token_agreement", "writing", "size")


def tokens_of(subject: Subject) -> Tokens:
    """Returns what student and teacher say about the held-out text, computed once a subject."""
    known = subject.__dict__.get("_tokens")
    if known is None:
        known = measure_tokens(subject.roles, subject.loader, subject.task, device=subject.device)
        subject.__dict__["_tokens"] = known
    return cast(Tokens, known)


@evaluations.register(
    "token_loss",
    title="Loss and perplexity on held-out text, and how often the most likely token is right",
    task=TASK,
    measures=(
        Measure("token_loss.loss", "Loss", "number", "lower", "Mean negative log-probability of a token, nats."),
        Measure("token_loss.perplexity", "Perplexity", "number", "lower", "exp(loss)."),
        Measure("token_loss.accuracy", "Tokens right", "fraction", "higher", "How often the likeliest token is right."),
        Measure("token_loss.ece", "ECE", "fraction", "lower", "Gap between confidence and accuracy, 15 equal bins."),
    ),
)
def token_loss(subject: Subject) -> Results:
    """Returns ``loss``, ``perplexity``, ``accuracy``, ``entropy``, ``ece`` and the number of ``tokens``."""
    tokens = tokens_of(subject)
    judged = {role: _judged(tokens, role) for role in subject.roles}
    student = judged.pop("student")
    return {**student, **judged}


def _judged(tokens: Tokens, role: str) -> Results:
    loss = tokens.loss[role].mean().item()
    right = (tokens.top1[role] == tokens.labels).float()
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "accuracy": right.mean().item(),
        "entropy": tokens.entropy[role].mean().item(),
        "ece": _calibration_error(tokens.confidence[role], right),
        "tokens": len(tokens.labels),
    }


def _calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Expected calibration error of the most likely token, over bins of equal width."""
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, (confidence - right).double())
    return (gaps.abs().sum() / len(right)).item()


@evaluations.register(
    "token_agreement",
    title="Fidelity on held-out text: equal most likely tokens, and divergence from the teacher",
    task=TASK,
    measures=(
        Measure("token_agreement.top1", "Agreement", "fraction", "higher", "How often both name the same token."),
        Measure(
            "token_agreement.kl_teacher_student", "KL to teacher", "number", "lower", "Mean KL(teacher ‖ student)."
        ),
        Measure("token_agreement.kl_student_teacher", "Reverse KL", "number", "lower", "Mean KL(student ‖ teacher)."),
    ),
)
def token_agreement(subject: Subject) -> Results:
    """Returns ``top1`` and both divergences in nats; or a ``note`` where there is no teacher with the same tokens."""
    tokens = tokens_of(subject)
    if tokens.forward is None or tokens.reverse is None:
        return {"note": "no teacher with the same vocabulary"}
    return {
        "top1": (tokens.top1["student"] == tokens.top1["teacher"]).float().mean().item(),
        "kl_teacher_student": tokens.forward.mean().item(),
        "kl_student_teacher": tokens.reverse.mean().item(),
    }


@evaluations.register(
    "writing",
    title="What student and teacher write, greedily, after the beginnings of held-out sequences",
    task=TASK,
    measures=(
        Measure(
            "writing.distinct", "Distinct", "fraction", "higher", "Part of the written pairs of tokens that differ."
        ),
    ),
)
def writing(subject: Subject, *, samples: int = 4, prompt: int = 32, tokens: int = 48) -> Results:
    """Returns ``samples``: prompt, the true continuation, and what each role writes; and ``distinct`` of the student.

    Args:
        subject: what is judged.
        samples: number of prompts, spread over the data.
        prompt: tokens of a prompt, where the data has no prompts of its own.
        tokens: tokens to write.
    """
    loader = subject.loader
    if not isinstance(loader, TextLoader):
        raise DataError("writing needs the text itself, which only limbeck's own loader of text gives")
    source, found = loader.source, []
    written: dict[str, list[list[int]]] = {role: [] for role in subject.modules}
    step = max(len(source.sequences) // samples, 1)
    for sequence in source.sequences[::step][:samples]:
        start = min(sequence.prompt or prompt, len(sequence) - 1)
        ids = sequence.ids[:start].tolist()
        sample = {
            "prompt": source.tokenizer.decode(ids),
            "truth": source.tokenizer.decode(sequence.ids[start : start + tokens].tolist()),
        }
        for role, model in subject.modules.items():
            new = write_on(model, ids, tokens, subject, source.tokenizer.eos_id)
            written[role].append(new)
            sample[role] = source.tokenizer.decode(new)
        found.append(sample)
    distinct = {role: _distinct(texts) for role, texts in written.items()}
    teacher = {"teacher": {"distinct": distinct["teacher"]}} if "teacher" in distinct else {}
    return {"samples": found, "distinct": distinct["student"], **teacher}


def write_on(model: nn.Module, ids: list[int], count: int, subject: Subject, end: int) -> list[int]:
    """Returns up to ``count`` tokens that a model writes after ``ids``, each the most likely one, without the end."""
    generate: Any = getattr(model, "generate", None)
    start = torch.tensor([ids], device=subject.device)
    with evaluation_mode(model):
        if generate is not None and hasattr(model, "config"):
            mask = torch.ones_like(start)
            out = generate(
                input_ids=start, attention_mask=mask, max_new_tokens=count, do_sample=False, eos_token_id=end,
                pad_token_id=end, temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
            new = out[0, len(ids) :].tolist()
        else:
            new = _step_by_step(model, start, count, subject, end)
    return new[: new.index(end)] if end in new else new


def _step_by_step(model: nn.Module, ids: Tensor, count: int, subject: Subject, end: int) -> list[int]:
    new: list[int] = []
    for _ in range(count):
        length = ids.shape[1]
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.arange(length, device=ids.device).unsqueeze(0),
        }
        logits = subject.task.run(model, inputs, frozenset({"logits"})).logits
        assert logits is not None
        new.append(int(logits[0, -1].argmax()))
        if new[-1] == end:
            break
        ids = torch.cat([ids, ids.new_tensor([[new[-1]]])], dim=1)
    return new


def _distinct(texts: list[list[int]]) -> float:
    pairs = [pair for text in texts for pair in pairwise(text)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


@evaluations.register(
    "size",
    title="Parameters and bytes of the models",
    task=TASK,
    measures=(
        Measure("size.parameters", "Parameters", "count", "lower", "Numbers of the model; tied ones count once."),
        Measure("size.bytes", "Weights", "bytes", "lower", "Bytes of the weights in memory."),
    ),
)
def size(subject: Subject) -> Results:
    """Returns ``parameters`` and ``bytes``, of the teacher too where it is a live model."""
    found = {
        role: {
            "parameters": sum(p.numel() for p in model.parameters()),
            "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        }
        for role, model in subject.modules.items()
    }
    student: Results = dict(found.pop("student"))
    return {**student, **found}
