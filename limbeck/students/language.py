"""Causal language models: pretrained ones, tiny ones made from a configuration, and students cut from a teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from limbeck.data.text.pretrained import PACKAGED, locate, transformers_module
from limbeck.errors import CheckpointError, MissingExtraError, RecipeError, UnknownNameError, suggest
from limbeck.hyperparameters import Count, Positive, validated
from limbeck.students.external import Request, python_model

_OWN = ("llama",)


def build_language_model(
    spec: str | Mapping[str, Any], *, vocabulary: int, context: int, trust: bool = False
) -> nn.Module:
    """Returns a causal language model by name.

    Args:
        spec: a name, or a mapping of ``name`` and options. Names are ``hf:NAME_OR_FOLDER``, ``gguf:FILE``, packaged
            models such as ``smollm2-135m-instruct``, ``llama`` for one made from its options (see :func:`llama`), and
            ``python:package.module:factory``. Pretrained models take ``pretrained`` (true), ``dtype`` (``float32``),
            ``layers`` (see :func:`keep_layers`), ``lora`` (see :func:`add_lora`), ``checkpointing`` (recompute
            activations in the backward pass) and ``attention`` (transformers' name of an implementation).
        vocabulary: number of true tokens.
        context: tokens of a row.
        trust: allow ``python:`` models, which run the code they name.

    Raises:
        UnknownNameError: nothing has that name.
        RecipeError: an option is unknown or out of range, the model does not fit the data, or it needs trust.
        MissingExtraError: a library is not installed.
        CheckpointError: pretrained weights cannot be had.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str) or not name:
        raise RecipeError(f"a model is a name, or a mapping with the key 'name' and options; got {spec!r}")
    if name.startswith("python:"):
        model = _factory(name.removeprefix("python:"), options, vocabulary, context, trust)
    else:
        shared: dict[str, Any] = {
            key: options.pop(key) for key in ("layers", "lora", "checkpointing") if key in options
        }
        if name == "llama":
            if "layers" in shared:
                options["layers"] = shared.pop("layers")
            model = llama(vocabulary=vocabulary, context=context, **options)
        else:
            model = _pretrained(name, **options)
        model = adapted(model, **shared)
    _check_fits(name, model, vocabulary, context)
    return model


def _factory(rest: str, options: Mapping[str, Any], vocabulary: int, context: int, trust: bool) -> nn.Module:
    if not trust:
        raise RecipeError(
            f"model 'python:{rest}' would run the code it names. If you trust that code, say so: --trust on the "
            "command line, trust=True in Python"
        )
    return python_model(Request(rest, vocabulary, (context,), options, False, None, None))


def _pretrained_model(
    name: str, *, pretrained: bool = True, dtype: str = "float32", attention: str | None = None
) -> nn.Module:
    found = locate(name)
    transformers = transformers_module(f"the model '{name}'")
    keywords: dict[str, Any] = {"dtype": _dtype(dtype)}
    if attention is not None:
        keywords["attn_implementation"] = attention
    try:
        if not pretrained:
            config = transformers.AutoConfig.from_pretrained(found.place, **found.keywords())
            return transformers.AutoModelForCausalLM.from_config(config, **keywords)
        if found.gguf is None:
            keywords["use_safetensors"] = True
        model = transformers.AutoModelForCausalLM.from_pretrained(found.place, **found.keywords(), **keywords)
    except ImportError as error:
        missing = "gguf" if "gguf" in str(error).lower() else "transformers"
        raise MissingExtraError(missing, "lm", f"the model '{name}'") from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise CheckpointError(f"the model '{name}' cannot be loaded: {reason}") from None
    return _plain(model)


_pretrained = validated("language model", _pretrained_model)


def _plain(model: Any) -> nn.Module:
    """Forgets that weights came from a quantised file: they are ordinary numbers now, and may be trained and saved."""
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer = None
        model.is_quantized = False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    return model


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise RecipeError(f"unknown type '{name}' of weights. {suggest(name, known)}")
    return known[name]


def _llama(
    *,
    vocabulary: Count,
    context: Count = 512,
    layers: Count = 2,
    width: Count = 64,
    heads: Count = 4,
    kv_heads: Count | None = None,
    inner: Count | None = None,
    theta: Positive = 10000.0,
    tied: bool = True,
    attention: str = "sdpa",
) -> nn.Module:
    if width % heads:
        raise RecipeError(f"language model 'llama': a width of {width} cannot be divided over {heads} heads")
    transformers = transformers_module("the model 'llama'")
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner or 4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation=attention,
    )
    return transformers.LlamaForCausalLM(config)


llama = validated("language model 'llama'", _llama)
llama.__doc__ = """Returns a Llama with random weights.

Args:
    vocabulary: number of tokens.
    context: tokens of a row.
    layers: transformer blocks.
    width: size of the hidden states.
    heads: attention heads.
    kv_heads: heads of keys and values; as many as ``heads`` when None.
    inner: width of the feed-forward layers; four times ``width`` when None.
    theta: base of the rotary position embedding.
    tied: whether input and output embeddings are one.
    attention: transformers' name of the attention implementation.

Raises:
    RecipeError: an option is out of range.
"""


def spread(total: int, kept: int) -> list[int]:
    """Returns ``kept`` of ``total`` layer numbers, evenly spaced, the first and the last among them.

    Example:
        >>> spread(30, 5), spread(12, 1)
        ([0, 7, 15, 22, 29], [0])
    """
    if not 1 <= kept <= total:
        raise RecipeError(f"a model of {total} layers cannot keep {kept}; give 1 to {total}")
    return [0] if kept == 1 else [int(n * (total - 1) / (kept - 1) + 0.5) for n in range(kept)]


def decoder_layers(model: nn.Module) -> tuple[nn.Module, str]:
    """Returns the module that holds a decoder's blocks and the name of the list.

    Raises:
        RecipeError: the model has no list of blocks that its configuration counts.
    """
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, name
    raise RecipeError(f"{type(model).__name__} has no list of blocks that limbeck could find, so none can be left out")


def keep_layers(model: nn.Module, layers: int | Sequence[int]) -> nn.Module:
    """Keeps some of a decoder's blocks, in place, and returns the model.

    Args:
        model: a model of transformers.
        layers: numbers of the blocks to keep, in increasing order; or how many, evenly spaced with the first and the
            last (as DistilBERT and Minitron's depth pruning take them).

    Raises:
        RecipeError: there are no such blocks.

    Reference:
        Sanh et al., DistilBERT, 2019, https://arxiv.org/abs/1910.01108
    """
    owner, name = decoder_layers(model)
    blocks = getattr(owner, name)
    chosen = spread(len(blocks), layers) if isinstance(layers, int) else list(layers)
    if not chosen or sorted(set(chosen)) != chosen or chosen[0] < 0 or chosen[-1] >= len(blocks):
        raise RecipeError(f"layers = {chosen}: give increasing numbers from 0 to {len(blocks) - 1}")
    setattr(owner, name, nn.ModuleList(blocks[n] for n in chosen))
    config: Any = model.config
    config.num_hidden_layers = len(chosen)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = [kinds[n] for n in chosen]
    for number, block in enumerate(getattr(owner, name)):
        # Key-value caches are kept under the number that attention remembers.
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number
    return model


def student_from(teacher: nn.Module, *, layers: int | Sequence[int]) -> nn.Module:
    """Returns a student that is a copy of some of the teacher's blocks, with its embeddings, norm and head.

    Raises:
        RecipeError: there are no such blocks.
    """
    return keep_layers(copy.deepcopy(teacher), layers)


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

Raises:
    MissingExtraError: peft is not installed.
    RecipeError: no layer has such a name.

Reference:
    Hu et al., LoRA, 2021, https://arxiv.org/abs/2106.09685
"""


def _check_fits(name: str, model: nn.Module, vocabulary: int, context: int) -> None:
    config = getattr(model, "config", None)
    rows, longest = getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None)
    if rows is not None and rows < vocabulary:
        raise RecipeError(
            f"the model '{name}' has {rows} tokens, but the tokenizer of the data has {vocabulary}; give the data this "
            "model's tokenizer (data.options.tokenizer)"
        )
    if longest is not None and longest < context:
        raise RecipeError(
            f"the model '{name}' reads at most {longest} tokens, but rows have {context}; lower data.options.context"
        )


def known_language_model(name: str) -> None:
    """Refuses a name that stands for no language model.

    Raises:
        UnknownNameError: proposes near matches.
    """
    if ":" not in name and name not in PACKAGED and name not in _OWN:
        raise UnknownNameError(f"unknown language model '{name}'. {suggest(name, [*PACKAGED, *_OWN])}")


def parameters(model: nn.Module) -> int:
    """Returns the number of parameters, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())
