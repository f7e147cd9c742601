"""Where text comes from: files, folders, JSONL, Hugging Face data sets, and a novel that limbeck ships."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.data.text.examples import Document, read_records, read_text, renamed
from limbeck.data.text.pairs import as_records
from limbeck.data.text.source import RawText, Split, text_data
from limbeck.errors import DataError, MissingExtraError

_SHIPPED = Path(__file__).parent.parent / "shipped"
_ENDINGS = ("", ".xz", ".gz", ".bz2")


@text_data("text", title="running text: a file, or the .txt and .md files of a folder", licence="")
def text_files(*, split: Split, path: str, pattern: str | None = None) -> RawText:
    """Returns each file as one document.

    Args:
        split: all splits come from the same files.
        path: a file, which may be compressed, or a folder.
        pattern: which files of the folder, such as ``**/*.py``; ``.txt`` and ``.md`` at any depth when None.

    Raises:
        DataError: there is no such file, or no text in it.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        patterns = [pattern] if pattern else [f"**/*{kind}{end}" for kind in (".txt", ".md") for end in _ENDINGS]
        files = sorted({file for p in patterns for file in place.glob(p) if file.is_file()})
    else:
        files = [place]
    if not files:
        raise DataError(f"the folder '{path}' has no text file; name others with `pattern`")
    documents = [Document(text) for text in map(read_text, files) if text.strip()]
    if not documents:
        raise DataError(f"'{path}' holds no text")
    return RawText(place.stem if place.is_file() else place.name, documents)


@text_data(
    "jsonl", title="JSONL with text, prompt and completion, messages, or prompt, chosen and rejected", licence=""
)
def jsonl(*, split: Split, path: str, columns: dict[str, str] | None = None) -> RawText:
    """Returns the lines of a file, or of the split's file in a folder (``train.jsonl``, ``test.jsonl``).

    Args:
        split: which file of a folder.
        path: a file, which may be compressed, or a folder.
        columns: what this file calls things, for example ``{prompt: question}``.

    Raises:
        DataError: there is no such file, or a line is not what it should be; names the line.
    """
    place = Path(path).expanduser()
    divided = place.is_dir()
    if divided:
        found = [place / f"{split}.jsonl{end}" for end in _ENDINGS if (place / f"{split}.jsonl{end}").is_file()]
        if not found:
            raise DataError(f"the folder '{path}' has no {split}.jsonl")
        place = found[0]
    examples = as_records(read_records(place, columns))
    if not examples:
        raise DataError(f"'{place}' holds no line")
    return RawText(Path(path).name, examples, divided)


@text_data(
    "hf",
    title="a Hugging Face data set with text, prompt and completion, messages, or prompt, chosen and rejected",
    licence="",
)
def huggingface_text(
    *,
    split: Split,
    path: str,
    config: str | None = None,
    columns: dict[str, str] | None = None,
    splits: dict[str, str] | None = None,
    download: bool = True,
) -> RawText:
    """Returns the rows of a Hugging Face data set.

    Args:
        split: ``train`` or ``test``; where there is no test split, one is held out.
        path: a folder written by ``save_to_disk``, a folder of data files, or a name on the hub.
        config: name of the configuration, where there are several.
        columns: what this data set calls things, for example ``{prompt: question}``.
        splits: what this data set calls a split, for example ``{test: validation}``.
        download: whether the hub may be asked; its cache is used in any case.

    Raises:
        MissingExtraError: the package ``datasets`` is not installed.
        DataError: the data set is not there, or a row is not what it should be.
    """
    if importlib.util.find_spec("datasets") is None:
        raise MissingExtraError("datasets", "hf", "Hugging Face data sets")
    loaded = _loaded(path, config, download)
    wanted = (splits or {}).get(split, split)
    divided = isinstance(loaded, Mapping)
    if divided and wanted not in loaded:
        if split != "test" or "train" not in loaded:
            raise DataError(f"'{path}' has no split '{wanted}', only {sorted(loaded)}; say which with `splits`")
        wanted, divided = (splits or {}).get("train", "train"), False
    elif divided and (splits or {}).get("test", "test") not in loaded:
        divided = False
    rows: Any = loaded[wanted] if isinstance(loaded, Mapping) else loaded
    examples = as_records((renamed(row, columns), f"row {number} of '{path}'") for number, row in enumerate(rows))
    return RawText(path, examples, divided)


def _loaded(path: str, config: str | None, download: bool) -> Any:
    import datasets

    place = Path(path).expanduser()
    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            return datasets.load_from_disk(str(place))
        access = datasets.DownloadConfig(local_files_only=not download)
        return datasets.load_dataset(str(place) if place.exists() else path, config, download_config=access)
    except Exception as error:  # The hub's client raises errors of many libraries.
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise DataError(f"cannot load the Hugging Face data set '{path}': {reason}") from error


@text_data(
    "persuasion",
    title="Persuasion, a novel by Jane Austen (1817)",
    licence="public domain",
)
def persuasion(*, split: Split) -> RawText:
    """Returns the novel as one document; it comes with limbeck."""
    text = read_text(_SHIPPED / "persuasion.txt.xz")
    return RawText("persuasion", [Document(text)], licence="Jane Austen, Persuasion, 1817; public domain")
