"""Tokenizers with fewer tokens: those that a text needs, which write that text with the same tokens as before."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from limbeck.data.text.pretrained import transformers_module
from limbeck.data.text.tokenizer import Tokenizer
from limbeck.errors import DataError, RecipeError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def trim_tokenizer(tokenizer: Tokenizer, counts: np.ndarray, *, most: int | None = None) -> Tokenizer:
    """Returns a tokenizer with only the tokens that a text needs; plain transformers saves and loads it.

    Special tokens stay, and so do all single bytes, so any other text can still be written, with more tokens. Of a
    byte-pair encoding the merges stay that lead to the tokens which are kept. Where every token of a text is kept, that
    text is divided as before: the merges that were used are still there, in their order, and none is new.

    Args:
        tokenizer: the whole tokenizer.
        counts: ``[V]`` how often each token occurs in the text.
        most: keep so many of the tokens that occur, the most frequent ones; all when None.

    Returns:
        A tokenizer whose ``origin`` is the whole one, and whose ``kept`` are the ids that its tokens have there.

    Raises:
        RecipeError: ``most`` is below 1.
        DataError: the tokenizer is of a kind that cannot be trimmed.
    """
    if most is not None and most < 1:
        raise RecipeError(f"a vocabulary of {most} tokens: keep at least 1")
    whole = json.loads(tokenizer.backend.backend_tokenizer.to_str())
    ids: dict[str, int] = tokenizer.backend.get_vocab()
    model = whole["model"]
    if model["type"] not in _TRIMMERS:
        raise DataError(f"a tokenizer of the kind {model['type']} cannot be trimmed, only {', '.join(_TRIMMERS)}")
    wanted = {token for token, number in ids.items() if number < len(counts) and counts[number]}
    if most is not None and len(wanted) > most:
        wanted = set(sorted(wanted, key=lambda token: (-counts[ids[token]], ids[token]))[:most])
    special = {entry["content"] for entry in whole["added_tokens"]} | set(tokenizer.backend.all_special_tokens)
    wanted |= special | _alphabet(whole, ids)
    kept = sorted(ids[token] for token in _TRIMMERS[model["type"]](model, wanted))
    new = {old: number for number, old in enumerate(kept)}
    names = {number: token for token, number in ids.items()}
    whole["model"] = _trimmed_model(model, [names[old] for old in kept], ids, new)
    whole["added_tokens"] = [{**e, "id": new[e["id"]]} for e in whole["added_tokens"]]
    whole["post_processor"] = _moved(whole.get("post_processor"), new)
    return Tokenizer(
        _rebuilt(whole, tokenizer.backend), f"{tokenizer.name}, {len(kept)} tokens", origin=tokenizer, kept=kept
    )


def _alphabet(whole: Mapping[str, Any], ids: Mapping[str, int]) -> set[str]:
    """Returns the tokens without which a text that was never seen could not be written."""
    by_bytes = {token for token in ids if _BYTE.fullmatch(token)}
    model = whole["model"]
    unknown = model.get("unk_token")
    spare = {unknown} if unknown in ids else set()
    if by_bytes and model.get("byte_fallback"):
        return by_bytes | spare
    return {token for token in ids if len(token) == 1} | by_bytes | spare


def _bpe_needs(model: Mapping[str, Any], wanted: set[str]) -> set[str]:
    """Returns the tokens and all that they are merged from."""
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise DataError("a byte-pair encoding that marks the inside or the end of words cannot be trimmed")
    ranks = {pair: rank for rank, pair in enumerate(_merges(model))}
    vocabulary = model["vocab"]
    needed = set(wanted)
    for token in wanted:
        needed.update(part for part in _merged_from(token, ranks) if part in vocabulary)
    return needed


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [tuple(m.split(" ", 1)) if isinstance(m, str) else (m[0], m[1]) for m in model["merges"]]  # type: ignore[misc]


def _merged_from(token: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """Returns every symbol that comes up while a token is merged from its characters."""
    symbols = list(token)
    seen = set(symbols)
    while len(symbols) > 1:
        found = [(ranks[pair], place) for place, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks]
        if not found:
            break
        place = min(found)[1]
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
        seen.add(symbols[place])
    return seen


def _as_they_are(model: Mapping[str, Any], wanted: set[str]) -> set[str]:
    return wanted


_TRIMMERS = {"BPE": _bpe_needs, "Unigram": _as_they_are, "WordPiece": _as_they_are, "WordLevel": _as_they_are}


def _trimmed_model(
    model: Mapping[str, Any], tokens: Sequence[str], ids: Mapping[str, int], new: Mapping[int, int]
) -> dict[str, Any]:
    """Returns the model with some of its tokens, numbered anew; tokens that are only added stay outside of it."""
    if model["type"] == "Unigram":
        if model.get("unk_id") is not None and model["unk_id"] not in new:
            raise DataError("a unigram tokenizer needs its unknown token")
        pieces = dict(model["vocab"])
        unknown = None if model.get("unk_id") is None else new[model["unk_id"]]
        return {**model, "vocab": [[t, pieces.get(t, 0.0)] for t in tokens], "unk_id": unknown}
    vocabulary = {token: new[ids[token]] for token in tokens if token in model["vocab"]}
    if model["type"] != "BPE":
        return {**model, "vocab": vocabulary}
    merges = [[a, b] for a, b in _merges(model) if a in vocabulary and b in vocabulary and a + b in vocabulary]
    return {**model, "vocab": vocabulary, "merges": merges}


def _moved(processor: Any, new: Mapping[int, int]) -> Any:
    """Returns a post-processor whose special tokens have their new ids."""
    if not isinstance(processor, dict):
        return processor
    moved = dict(processor)
    if moved.get("type") == "Sequence":
        moved["processors"] = [_moved(p, new) for p in moved["processors"]]
    for name, entry in (moved.get("special_tokens") or {}).items():
        moved["special_tokens"] = {
            **moved["special_tokens"],
            name: {**entry, "ids": [new[number] for number in entry["ids"]]},
        }
    for name in ("sep", "cls"):
        if name in moved:
            moved[name] = [moved[name][0], new[moved[name][1]]]
    return moved


_COPIED = ("model_max_length", "padding_side", "truncation_side", "model_input_names")


def _rebuilt(whole: Mapping[str, Any], backend: Any) -> Any:
    from tokenizers import Tokenizer as Backend

    transformers = transformers_module("a trimmed tokenizer")
    shared = {name: getattr(backend, name) for name in _COPIED if hasattr(backend, name)}
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(json.dumps(whole)),
        clean_up_tokenization_spaces=False,
        **shared,
        **backend.special_tokens_map,
    )
    made.chat_template = backend.chat_template
    return made
