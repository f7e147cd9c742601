"""The command that serves a teacher."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from limbeck.cli.application import app, fail


@app.command()
def serve(
    teacher: Annotated[str, typer.Argument(help="`hf:NAME_OR_FOLDER`, `gguf:FILE`, a packaged model, or a folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; only this machine by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; a free one when 0.", min=0, max=65535)] = 8000,
    precision: Annotated[str, typer.Option(help="`fp32` or `bf16`.")] = "fp32",
    most: Annotated[int, typer.Option(help="Log-probabilities a place that may be asked for.", min=1)] = 1000,
    key_variable: Annotated[
        str | None, typer.Option(help="Environment variable that holds the key which clients must send.")
    ] = None,
) -> None:
    """Serve a language model through the OpenAI protocol, with the log-probabilities that distillation needs.

    Prompts are scored too (`echo`), by as many tokens as asked, at the temperature of the request. Ctrl-C ends it.

    Example: `limbeck serve smollm2-135m-instruct --port 8000`, and in a recipe
    `roles.teacher='{remote: {url: "http://127.0.0.1:8000/v1", model: smollm2-135m-instruct}}'`
    """
    from limbeck.teachers.server import serve as make_server

    key = None if key_variable is None else _key_in(key_variable)
    server = make_server(teacher, host=host, port=port, precision=precision, most=most, key=key)
    typer.echo(f"serving {server.protocol.name} at {server.url}; Ctrl-C ends it")
    server.run()


def _key_in(variable: str) -> str:
    value = os.environ.get(variable, "")
    if not value:
        fail(f"the environment variable {variable} holds no key", 2)
    return value
