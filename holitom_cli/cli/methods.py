"""holitom methods: what there is behind --method."""

from __future__ import annotations

import inspect
from dataclasses import MISSING
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from holitom_cli.cli.console import print_data, write_json
from holitom_cli.cli.options import command
from holitom_cli.report.terminal import doctor_table, methods_table

if TYPE_CHECKING:
    from holitom_cli.methods import Method


@command()
def methods(
    *,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One method, in full.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List the compression methods, or describe one with its settings."""
    from holitom_cli import methods as room

    described = {key: _describe(room.find(key)) for key in ([name] if name else room.available())}
    if json:
        write_json({"methods": described})
    elif name:
        print_data(_in_full(name, described[name]))
    else:
        rows = [
            {"method": key, **{name: text[name] for name in ("status", "summary")}} for key, text in described.items()
        ]
        print_data(methods_table(rows))


def _describe(cls: type[Method]) -> dict[str, Any]:
    from holitom_cli.methods import settings_of

    hints = get_type_hints(cls, include_extras=True)
    text = inspect.cleandoc(cls.__doc__ or "")
    return {
        "summary": text.partition("\n\n")[0],
        "description": text,
        "status": cls.status,
        "file": str(inspect.getsourcefile(cls)),
        "settings": {
            field.name: {
                "default": None if field.default is MISSING else field.default,
                "meaning": next(iter(getattr(hints[field.name], "__metadata__", ())), ""),
            }
            for field in settings_of(cls)
        },
        "presets": {preset: dict(values) for preset, values in cls.presets.items()},
    }


def _in_full(name: str, described: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.text import Text

    settings = {key: f"{value['default']}  {value['meaning']}" for key, value in described["settings"].items()}
    presets = {key: ", ".join(f"{k}={v}" for k, v in values.items()) for key, values in described["presets"].items()}
    sections = {"Settings": settings or {"none": ""}, **({"Presets": presets} if presets else {})}
    file = Text(described["file"], "dim")
    prose = "\n\n".join(" ".join(part.split()) for part in described["description"].split("\n\n"))
    return Group(
        Text.assemble((name, "bold"), f"  {described['status']}"), Text(prose), Text(), doctor_table(sections), file
    )
