"""A language model as a GGUF file, for llama.cpp and what is built on it, written with llama.cpp's own library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from limbeck.data.text import Tokenizer
from limbeck.errors import LimbeckError, MissingExtraError

_KINDS = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""Types of models that are written, and the library's names of their architectures."""
_QWEN = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"


def write_gguf(
    model: Any, tokenizer: Tokenizer, path: str | Path, *, name: str = "student", about: Mapping[str, str] | None = None
) -> None:
    """Writes a model and its tokenizer as one float32 GGUF file.

    Types that are quicker to run are made from it by llama.cpp's ``llama-quantize``.

    Args:
        model: a plain Llama, Qwen2 or Qwen3 of transformers, adapters merged.
        tokenizer: its tokenizer, a byte-level byte-pair encoding.
        path: the file.
        name: the model's name in the file.
        about: ``description`` and ``license``, where they are known.

    Raises:
        MissingExtraError: the package ``gguf`` is not installed.
        LimbeckError: the model or its tokenizer is of another kind.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("gguf", "lm", "GGUF export") from None
    kind = getattr(model.config, "model_type", None)
    if kind not in _KINDS:
        raise LimbeckError(
            f"GGUF export writes models of the types {', '.join(_KINDS)}, and this one is of type '{kind}'; convert "
            "the folder `student/` of the run with llama.cpp's convert_hf_to_gguf.py"
        )
    architecture = getattr(gguf.MODEL_ARCH, _KINDS[kind])
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[architecture])
    _write_about(writer, name, about or {})
    _write_shape(writer, model.config)
    _write_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    for key, tensor in _tensors(model).items():
        found = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise LimbeckError(f"GGUF export knows no place for '{key}' of {type(model).__name__}")
        writer.add_tensor(found, _ordered(key, tensor, model.config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_about(writer: Any, name: str, about: Mapping[str, str]) -> None:
    writer.add_name(name)
    if about.get("description"):
        writer.add_description(about["description"])
    if about.get("license"):
        writer.add_license(about["license"])
    writer.add_file_type(0)


def _write_shape(writer: Any, config: Any) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise LimbeckError(f"GGUF export writes plain rotary embeddings, not those of the type '{rope['rope_type']}'")
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))


def _write_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    import gguf

    whole = json.loads(tokenizer.backend.backend_tokenizer.to_str())
    names = {number: token for token, number in tokenizer.backend.get_vocab().items()}
    special = {entry["id"] for entry in whole["added_tokens"] if entry["special"]} | set(
        tokenizer.backend.all_special_ids
    )
    added = {entry["id"] for entry in whole["added_tokens"]}
    kinds = [
        gguf.TokenType.UNUSED if n not in names
        else gguf.TokenType.CONTROL if n in special
        else gguf.TokenType.USER_DEFINED if n in added
        else gguf.TokenType.NORMAL
        for n in range(tokenizer.vocabulary)
    ]  # fmt: skip
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(whole))
    writer.add_token_list([names.get(n, f"[unused{n}]") for n in range(tokenizer.vocabulary)])
    writer.add_token_types(kinds)
    merges = whole["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    if not merges:
        # The format leaves out empty lists, and readers then look for scores.
        writer.add_token_scores([0.0] * tokenizer.vocabulary)
    for write, token in (
        (writer.add_bos_token_id, tokenizer.backend.bos_token_id),
        (writer.add_eos_token_id, tokenizer.backend.eos_token_id),
        (writer.add_pad_token_id, tokenizer.backend.pad_token_id),
    ):
        if token is not None:
            write(token)
    begins = list(tokenizer.backend("a", verbose=False)["input_ids"])[:1] == [tokenizer.bos_id]
    writer.add_add_bos_token(begins and tokenizer.bos_id is not None)
    if tokenizer.template:
        writer.add_chat_template(tokenizer.template)


def pre_tokenizer_name(whole: Mapping[str, Any]) -> str:
    """Returns GGUF's name of the way in which a tokenizer splits text before it merges.

    Args:
        whole: the content of ``tokenizer.json``.

    Raises:
        LimbeckError: it is not a byte-level byte-pair encoding, or splits in a way that has no name.
    """
    pre = json.dumps(whole.get("pre_tokenizer"), ensure_ascii=False)
    if whole["model"]["type"] != "BPE" or '"ByteLevel"' not in pre or whole.get("normalizer") is not None:
        raise LimbeckError(
            "GGUF export writes byte-level byte-pair encodings; convert the folder `student/` of the run with "
            "llama.cpp's convert_hf_to_gguf.py"
        )
    parts = whole["pre_tokenizer"].get("pretokenizers", [whole["pre_tokenizer"]])
    kinds = [part["type"] for part in parts]
    patterns = [part["pattern"].get("Regex", "") for part in parts if part["type"] == "Split"]
    if not whole["model"]["merges"] or (kinds == ["ByteLevel"] and parts[0].get("use_regex", True)):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and patterns[0].startswith(_QWEN):
        return "qwen2"
    if kinds == ["Split", "ByteLevel"] and "\\p{N}{1,3}" in patterns[0]:
        return "llama-bpe"
    raise LimbeckError(f"GGUF has no name that limbeck knows for a tokenizer that splits by {' and '.join(kinds)}")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the model's parameters by name; a head that is the embedding is not written again."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[operator]
    found = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    return {key: tensor for key, tensor in found.items() if not (tied and key == "lm_head.weight")}


def _ordered(key: str, tensor: Tensor, config: Any) -> np.ndarray:
    """Returns a tensor as the format has it: Llama's rotary pairs lie side by side there."""
    values = tensor.float().cpu().numpy()
    if config.model_type != "llama" or not key.endswith(
        ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")
    ):
        return values
    heads = config.num_attention_heads if ".q_proj." in key else config.num_key_value_heads
    paired = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(values.shape))
