"""Defaults from the user's own config file: below options and the environment, above the built-in ones."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from holitom_cli.cli.options import (
    AnswerOptions,
    CacheOptions,
    MethodOptions,
    ModelOptions,
    SamplingOptions,
    VideoOptions,
)
from holitom_cli.errors import UsageError, reason

_GROUPS = (VideoOptions, SamplingOptions, CacheOptions, ModelOptions, MethodOptions, AnswerOptions)


def config_file() -> Path:
    """Where the user's defaults are: config.toml in the directory that the platform has for them."""
    return Path(typer.get_app_dir("holitom")) / "config.toml"


def defaults() -> dict[str, Any]:
    """The defaults by option; nothing where there is no file.

    Raises:
        UsageError: the file is no TOML, or names something that is not an option.
    """
    path = config_file()
    if not path.is_file():
        return {}
    import tomllib

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # neither text nor TOML
        raise UsageError(f"{path} cannot be read: {reason(error)}.", "Mend it, or move it away.") from error
    values = {key.replace("-", "_"): value for key, value in values.items()}
    known = {field.name for group in _GROUPS for field in fields(group)} - {"yes", "set"}
    if unknown := sorted(set(values) - known):
        raise UsageError(
            f"{path} sets {unknown[0]!r}, which is not an option.", f"Options: {', '.join(sorted(known))}."
        )
    return values
