"""The command: it parses, calls the library and prints.

One file a group of commands. Imports happen inside commands, so that ``--help`` is immediate.
"""

# The order of these imports is that of the commands in `limbeck --help`.
from limbeck.cli import training, writing, results, searching, serving, listing  # noqa: F401, I001
from limbeck.cli.application import app, main

__all__ = ["app", "main"]
