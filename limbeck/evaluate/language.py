"""Evaluations of language models on held-out text: loss, fidelity to the teacher, size."""

from __future__ import annotations

from typing import cast

from limbeck.evaluate.base import Results, Subject, evaluations, numbers
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.tokens import Tokens, measure_tokens, perplexity
from limbeck.functional.metrics import binned_confidence, calibration_gap

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
        "ece": calibration_gap(binned_confidence(tokens.confidence[role], right)).item(),
        "tokens": len(tokens.labels),
    }


@evaluations.register(
    "token_agreement",
    title="Fidelity on held-out text: equal likely tokens, divergence from the teacher, repeated errors",
    task=TASK,
    measures=(
        Measure("token_agreement.top1", "Agreement", "fraction", "higher", "How often both name the same token."),
        Measure(
            "token_agreement.top5", "Agreement, 5", "fraction", "higher", "Part of the five likeliest tokens in common."
        ),
        Measure(
            "token_agreement.kl_teacher_student", "KL to teacher", "number", "lower", "Mean KL(teacher ‖ student)."
        ),
        Measure("token_agreement.kl_student_teacher", "Reverse KL", "number", "lower", "Mean KL(student ‖ teacher)."),
    ),
)
def token_agreement(subject: Subject) -> Results:
    """Returns how far student and teacher agree; or a ``note`` where there is no teacher with the same tokens.

    ``top1`` and ``top5`` count equal likely tokens, ``on_teacher_errors`` how often the student repeats an error of the
    teacher's, ``expected`` how often tokens drawn from both would be equal: agreement alone rises with accuracy.
    ``kl_teacher_student`` and ``kl_student_teacher`` are means in nats a token, ``right`` says who is right where.
    """
    tokens = tokens_of(subject)
    if not tokens.compared:
        return {"note": _absence(tokens)}
    same = tokens.top1["student"] == tokens.top1["teacher"]
    ours, theirs = (tokens.top1[role] == tokens.labels for role in ("student", "teacher"))
    mean = {name: values.double().mean().item() for name, values in tokens.compared.items()}
    return {
        "top1": same.double().mean().item(),
        "top5": mean["top5"],
        "on_teacher_errors": numbers([same[~theirs].double().mean().item()])[0],
        "expected": mean["expected"],
        "total_variation": mean["variation"],
        "kl_teacher_student": mean["forward"],
        "kl_student_teacher": mean["reverse"],
        "right": {
            "both": (ours & theirs).double().mean().item(),
            "teacher_only": (~ours & theirs).double().mean().item(),
            "student_only": (ours & ~theirs).double().mean().item(),
            "neither": (~ours & ~theirs).double().mean().item(),
        },
    }


def _absence(tokens: Tokens) -> str:
    """Why there is nothing to compare the student with, in words."""
    if "teacher" in tokens.loss:
        return "the teacher has another vocabulary than the student"
    return (
        "no teacher with the student's tokens that can be asked about held-out text: a cache knows the training text "
        "alone and a server is paid by the token; the role `reference` may hold the model"
    )


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
