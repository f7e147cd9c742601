"""A trained language model as a file or folder for deployment, compared with the student on real text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from limbeck.data.text import Tokenizer
from limbeck.engine.checkpoint import write_atomically
from limbeck.errors import LimbeckError, RecipeError, suggest
from limbeck.export.card import ModelCard
from limbeck.export.gguf import write_gguf
from limbeck.export.language_onnx import language_onnx, onnx_logits
from limbeck.export.parity import Logits, Parity, compare
from limbeck.export.pretrained import merged, save_pretrained
from limbeck.signals import Batch

LANGUAGE_FORMATS = ("pretrained", "gguf", "onnx")
_USUAL = {"pretrained": "exported", "gguf": "student.gguf", "onnx": "student.onnx"}


def export_language_model(
    student: nn.Module,
    tokenizer: Tokenizer,
    form: str,
    out: str | Path,
    *,
    batches: Sequence[Batch],
    card: ModelCard | None = None,
) -> tuple[Path, Parity]:
    """Writes a language model for deployment, after comparing what was written with the student on text.

    Adapters are merged into the weights. Nothing appears at ``out`` when the comparison fails.

    Args:
        student: a model of transformers, with or without adapters; it is not changed.
        tokenizer: its tokenizer.
        form: ``pretrained``, a folder that plain transformers loads; ``gguf`` or ``onnx``.
        out: the file or folder; a folder that exists gets the usual name in it.
        batches: real text on which both are compared.
        card: what is known of the student.

    Returns:
        Where it is, and how far it is from the student.

    Raises:
        RecipeError: there is no such format.
        MissingExtraError: a library is not installed.
        LimbeckError: the model cannot be expressed in the format, or what was written says something else.
    """
    if form not in LANGUAGE_FORMATS:
        raise RecipeError(f"unknown export format '{form}'. {suggest(form, LANGUAGE_FORMATS)}")
    path = Path(out)
    if form != "pretrained" and path.is_dir():
        path /= _USUAL[form]
    plain = merged(student).eval()
    if not hasattr(plain, "save_pretrained"):
        raise LimbeckError(f"{type(plain).__name__} is no model of transformers, so it has no form to export")
    return path, _WRITERS[form](plain, tokenizer, path, batches, card)


def usual_place(folder: Path, form: str) -> Path:
    """Returns where a run's export goes when nobody says."""
    return folder / _USUAL.get(form, form)


def logits_of(model: Any) -> Logits:
    """Returns what runs a language model of transformers."""

    def logits(ids: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits

    return logits


def _as_folder(
    model: nn.Module, tokenizer: Tokenizer, path: Path, batches: Sequence[Batch], card: ModelCard | None
) -> Parity:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, tokenizer, folder, card=card)
        again = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        found = compare(logits_of(model), logits_of(again), batches)
        _check_tokenizer(tokenizer, AutoTokenizer.from_pretrained(folder), batches)
    save_pretrained(model, tokenizer, path, card=card)
    return found


def _as_gguf(
    model: nn.Module, tokenizer: Tokenizer, path: Path, batches: Sequence[Batch], card: ModelCard | None
) -> Parity:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    about = {} if card is None else {"description": card.to_markdown().split("\n\n")[1], "license": card.licence}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".gguf-") as folder:
        file = Path(folder) / "student.gguf"
        write_gguf(model, tokenizer, file, about=about)
        # Read back by another library than the one that wrote it.
        try:
            again = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name).eval()
            theirs = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise LimbeckError(
                f"transformers cannot read the GGUF file back, so it cannot be compared ({reason}); convert the "
                "folder `student/` of the run with llama.cpp's convert_hf_to_gguf.py"
            ) from error
        found = compare(logits_of(model), logits_of(again), batches)
        _check_tokenizer(tokenizer, theirs, batches)
        file.replace(path)
    return found


def _as_onnx(
    model: nn.Module, tokenizer: Tokenizer, path: Path, batches: Sequence[Batch], card: ModelCard | None
) -> Parity:
    data = language_onnx(model, metadata=None if card is None else card.metadata())
    found = compare(logits_of(model), onnx_logits(data), batches)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    return found


_Writer = Callable[[nn.Module, Tokenizer, Path, Sequence[Batch], ModelCard | None], Parity]
_WRITERS: dict[str, _Writer] = {"pretrained": _as_folder, "gguf": _as_gguf, "onnx": _as_onnx}


def _check_tokenizer(ours: Tokenizer, theirs: Any, batches: Sequence[Batch]) -> None:
    """Refuses a tokenizer that was written and now divides the text otherwise."""
    for batch in batches:
        for ids, seen in zip(batch["inputs"]["input_ids"], batch["inputs"]["attention_mask"].bool()):
            text = ours.decode(ids[seen].tolist(), special=True)
            again = Tokenizer(theirs, "exported").encode(text)
            if again != ours.encode(text):
                raise LimbeckError(
                    f"the exported tokenizer divides text otherwise than '{ours.name}', for example {text[:40]!r}; "
                    "nothing was written"
                )
