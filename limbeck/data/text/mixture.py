"""Text of several domains, each from a reader of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.data.text.source import RawText, Split, text_data, texts
from limbeck.errors import RecipeError


@text_data("domains", title="a mixture of other text data sets, each a domain", licence="that of the parts")
def domains(*, split: Split, domains: dict[str, Any]) -> RawText:
    """Returns text that knows which domain it is of: batches say it as ``domain``.

    Every domain is divided into training and test by itself, and rows of tokens never mix domains.

    Args:
        split: handed on to the readers.
        domains: by name, a text data set: its name, or a mapping of ``name`` and options.

    Raises:
        RecipeError: there are fewer than two domains, or one is no text data set.
    """
    if len(domains) < 2:
        raise RecipeError("a mixture has at least two domains, `domains: {novel: persuasion, code: python_library}`")
    parts = {str(name): _part(str(name), spec, split) for name, spec in domains.items()}
    licences = "; ".join(f"{name}: {part.licence}" for name, part in parts.items() if part.licence)
    return RawText("domains", licence=licences, domains=parts)


def _part(domain: str, spec: Any, split: Split) -> RawText:
    options = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    name = options.pop("name", None)
    if not isinstance(name, str) or name == "domains":
        raise RecipeError(
            f"the domain '{domain}' should be a text data set other than `domains`, by name or {{name: ..., option: "
            f"...}}; it is {spec!r}"
        )
    return texts[name].part(split=split, **{str(key): value for key, value in options.items()})
