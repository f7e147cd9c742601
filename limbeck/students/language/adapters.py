"""What is put around a model: low-rank adapters, and activations that are computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from limbeck.errors import MissingExtraError, RecipeError
from limbeck.hyperparameters import Count, Positive, validated
from limbeck.students.language.blocks import keep_layers


def adapted(
    model: nn.Module,
    *,
    layers: int | Sequence[int] | None = None,
    lora: Mapping[str, Any] | None = None,
    checkpointing: bool = False,
) -> nn.Module:
    """Returns a model with some of its blocks, with LoRA adapters, or with activations that are computed again.

    Raises:
        RecipeError: an option is out of range.
        MissingExtraError: adapters are asked for and peft is not installed.
    """
    if layers is not None:
        model = keep_layers(model, layers)
    if checkpointing:
        enable: Any = getattr(model, "gradient_checkpointing_enable", None)
        if enable is None:
            raise RecipeError(f"{type(model).__name__} cannot recompute activations; remove checkpointing")
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model if lora is None else add_lora(model, **lora)


def _add_lora(
    model: Any,
    *,
    rank: Count = 8,
    alpha: Positive | None = None,
    dropout: float = 0.0,
    targets: list[str] | str = "all-linear",
    train_too: list[str] | None = None,
    merge: bool = False,
) -> nn.Module:
    from limbeck.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    try:
        import peft
    except ImportError:
        raise MissingExtraError("peft", "lm", "LoRA students") from None
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=train_too,
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise RecipeError(f"LoRA cannot be put on {type(model).__name__}: {str(error).splitlines()[0]}") from None


add_lora = validated("lora", _add_lora)
add_lora.__doc__ = """Returns a model whose weights are frozen, with trainable low-rank factors beside them.

Args:
    model: a model of transformers.
    rank: rank of the factors.
    alpha: their scale is ``alpha / rank``; twice the rank when None.
    dropout: dropout before the factors.
    targets: names of the layers, or ``all-linear`` for all but the output layer.
    train_too: names of modules that are trained whole.
    merge: write the finished student with the factors merged into its weights, as a model of its own; a run reads it.

Raises:
    MissingExtraError: peft is not installed.
    RecipeError: no layer has such a name.

Reference:
    Hu et al., LoRA, 2021, https://arxiv.org/abs/2106.09685
"""
