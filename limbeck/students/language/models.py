"""Causal language models: pretrained ones, and tiny ones made from a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from limbeck.data.text.pretrained import PACKAGED, locate, transformers_module
from limbeck.errors import CheckpointError, MissingExtraError, RecipeError, UnknownNameError, suggest
from limbeck.hyperparameters import Count, Positive, validated
from limbeck.students.external import Request, python_model
from limbeck.students.language.adapters import adapted

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
            _refuse_shapes_of_data(options)
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


def _refuse_shapes_of_data(options: Mapping[str, Any]) -> None:
    for key in ("vocabulary", "context"):
        if key in options:
            of = "data.options.tokenizer" if key == "vocabulary" else "data.options.context"
            raise RecipeError(f"language model 'llama': its {key} is that of the data ({of}); remove '{key}'")


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
