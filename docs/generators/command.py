"""The reference of the command, from the command itself."""

from __future__ import annotations

from typing import Any

import typer

from limbeck.cli import app

from .markup import code, table


def command_reference() -> str:
    """Returns a section a sub-command: what it does, its arguments and options."""
    group: Any = typer.main.get_command(app)
    return "\n\n".join(_section(name, command) for name, command in group.commands.items())


def _section(name: str, command: Any) -> str:
    usage = ["limbeck", name, *(_placeholder(p) for p in command.params if p.param_type_name == "argument")]
    parts = [f"## `limbeck {name}`", code(" ".join([*usage, "[options]"]), "console"), command.help or ""]
    rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
    if rows:
        parts.append(table(["Argument or option", "Default", "Meaning"], rows))
    return "\n\n".join(parts)


def _placeholder(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _row(parameter: Any) -> list[str]:
    shown = (
        _placeholder(parameter)
        if parameter.param_type_name == "argument"
        else ", ".join([*parameter.opts, *parameter.secondary_opts])
    )
    default = (
        "required" if parameter.required else "" if parameter.default in (None, False, ()) else f"`{parameter.default}`"
    )
    return [f"`{shown}`", default, parameter.help or ""]
