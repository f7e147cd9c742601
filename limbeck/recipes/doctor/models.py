"""What models say of themselves: context, type of numbers, softcaps, ties, sampling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.text import Tokenizer
from limbeck.recipes.doctor.finding import Finding

_NEAR = 0.25
_FP16_MAX = torch.finfo(torch.float16).max


def check_context(role: str, model: Any, tokenizer: Tokenizer, context: int) -> list[Finding]:
    """Returns whether rows are longer than a model, or its tokenizer, was made for."""
    config = getattr(model, "config", None)
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and longest < context:
        return [
            Finding(
                "error",
                f"{role} cannot read a whole row",
                f"rows have {context} tokens, it has positions for {longest}",
                f"set data.options.context to at most {longest}",
            )
        ]
    stated = tokenizer.backend.model_max_length
    if stated and stated < context:
        return [
            Finding(
                "warning",
                f"rows are longer than the tokenizer of {role} says that its model reads",
                f"rows have {context} tokens, model_max_length is {stated}",
                f"set data.options.context to at most {stated}, or correct tokenizer_config.json",
            )
        ]
    return []


def check_logit_changes(role: str, model: Any) -> list[Finding]:
    """Returns what a model does to logits beyond its head, which another implementation of a loss could forget."""
    config: Any = getattr(model, "config", None)
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    found = {name: value for name in names if (value := getattr(config, name, None)) not in (None, 1, 1.0)}
    if not found:
        return []
    return [
        Finding(
            "note",
            f"{role} changes its logits after the head",
            ", ".join(f"{name} {value}" for name, value in found.items()),
            "nothing: the loss head applies it. A fused loss that only gets head weights would not",
        )
    ]


def check_numbers(role: str, model: nn.Module, *, trains: bool, lr: float, precision: str) -> list[Finding]:
    """Returns whether a model's type of numbers can carry its training."""
    types = {p.dtype for p in model.parameters() if p.requires_grad or not trains}
    findings = []
    if trains and torch.float16 in types:
        findings.append(
            Finding(
                "error",
                f"{role} trains in float16, without scaling of the loss",
                f"gradients below {torch.finfo(torch.float16).tiny:.0e} become zero, values above 65,504 infinite",
                "load it with dtype: float32 and set train.precision: bf16",
            )
        )
    if trains and torch.bfloat16 in types:
        findings.append(
            Finding(
                "warning",
                f"{role} keeps its trained weights in bfloat16",
                f"a step below 1/256 of a weight is lost in rounding; the learning rate is {lr:g}",
                "load it with dtype: float32 and set train.precision: bf16, which computes in bfloat16 and keeps "
                "weights whole",
            )
        )
    if not trains and precision == "fp32" and types & {torch.float16, torch.bfloat16}:
        names = ", ".join(sorted(str(t).removeprefix("torch.") for t in types))
        findings.append(
            Finding(
                "note",
                f"{role} computes in {names}",
                f"its logits are rounded to {'8' if torch.bfloat16 in types else '11'} bits, the student's are not",
                "dtype: float32 where it fits in memory",
            )
        )
    return findings


def check_values(role: str, values: Tensor, what: str, *, half: bool) -> list[Finding]:
    """Returns whether what a model gave on the first batch is finite, and far enough from the end of float16.

    Args:
        role: the model's role.
        values: hidden states or logits.
        what: their name.
        half: whether the model computes, or is to be deployed, in float16.
    """
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        return [
            Finding(
                "error",
                f"{role} gives {what} that are not finite",
                f"{bad:,} of {values.numel():,} on the first batch",
                "load it with dtype: float32 or bfloat16; float16 ends at 65,504",
            )
        ]
    largest = float(values.abs().max()) if values.numel() else 0.0
    if half and largest > _NEAR * _FP16_MAX:
        return [
            Finding(
                "warning",
                f"{role} comes near the end of float16",
                f"{what} up to {largest:,.0f} on the first batch; float16 ends at 65,504",
                "use bfloat16 or float32",
            )
        ]
    return []


def check_adapters(role: str, model: Any) -> list[Finding]:
    """Returns what is to say of adapters on embeddings and heads that share their weights."""
    if not hasattr(model, "peft_config"):
        return []
    base = model.get_base_model()
    tied = bool(getattr(base.config, "tie_word_embeddings", False))
    names = ("lm_head", "embed_tokens")
    touched = sorted(
        {n for n in names for path, _ in model.named_parameters() if f"{n}.lora" in path or f"{n}.modules_to" in path}
    )
    if not tied or not touched:
        return []
    return [
        Finding(
            "warning",
            f"{role} adapts {' and '.join(touched)}, whose weights input and output share",
            "merging the adapter changes both, training changed one",
            "leave them out of lora.targets and lora.train_too, or untie the embeddings first",
        )
    ]


def check_sampling(role: str, model: Any) -> list[Finding]:
    """Returns the settings of sampling that come with a model and are not used here."""
    config = getattr(model, "generation_config", None)
    names = ("temperature", "top_p", "top_k", "repetition_penalty")
    usual = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}
    found = {n: v for n in names if (v := getattr(config, n, None)) is not None and v != usual[n]}
    if not found:
        return []
    return [
        Finding(
            "note",
            f"{role} comes with settings of sampling",
            ", ".join(f"{n} {v:g}" for n, v in found.items()),
            "limbeck samples as the recipe says; the exported student keeps these for others",
        )
    ]


def check_knows(role: str, loss: float, vocabulary: int) -> list[Finding]:
    """Returns whether a teacher knows more of the text than nothing.

    Args:
        role: the teacher's role.
        loss: its mean loss of a token on the first batch, in nats.
        vocabulary: number of tokens.
    """
    chance = math.log(vocabulary)
    if not math.isfinite(loss) or loss < 0.9 * chance:
        return []
    return [
        Finding(
            "warning",
            f"{role} knows next to nothing of this text",
            f"{loss:.2f} nats a token on the first batch; guessing gives {chance:.2f}",
            "see whether its weights were loaded, and whether tokenizer and template are its own",
        )
    ]
