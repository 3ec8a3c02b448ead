"""Presets: files of call arguments, and those of the user's folder by name."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

from ..core.canonical import JsonObject, canonical_json
from ..core.errors import NotFoundError, UsageError
from ..core.flag import Flag
from ..storage.disk import unreadable, user_path
from ..storage.opening import open_stream
from .argument_values import argument_name, from_json, json_of, typed_values

LARGEST = 1 << 24  # bytes of a preset; far more than call arguments take
STILL = 60.0  # seconds in which the next byte of one that comes through a pipe, <(jq ...), must be there


def preset(reference: str, folder: Path) -> JsonObject:
    """The call arguments of a preset: a TOML or JSON file, or the name of one in the folder of presets.

    Raises NotFoundError with the names there are, UsageError for what is no table of arguments.
    """
    path = _preset_path(reference, folder)
    text = _preset_text(path, reference, folder)
    try:
        values = json_of(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
        canonical_json(values)  # TOML has dates, too, and numbers that are none
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"--args {reference}: {error}", "for example guidance_scale = 4.5, one a line") from None
    if not isinstance(values, dict):
        raise UsageError(f"--args {reference} is no JSON object", 'for example {"guidance_scale": 4.5}')
    return values


def _preset_path(reference: str, folder: Path) -> Path:
    path = user_path(reference)
    if path.suffix.lower() in (".toml", ".json") or len(path.parts) != 1:
        return path
    return next((found for ending in (".toml", ".json") if (found := folder / f"{reference}{ending}").exists()), path)


def _preset_text(path: Path, reference: str, folder: Path) -> str:
    try:
        with open_stream(path, STILL) as stream:
            data = stream.read(LARGEST + 1)
    except FileNotFoundError:
        raise NotFoundError(f"--args: there is no file {reference}", _presets_hint(folder)) from None
    except OSError as error:
        raise unreadable(f"--args {reference}", error, _presets_hint(folder)) from None
    if len(data) > LARGEST:
        raise UsageError(f"--args {reference} is larger than {LARGEST} bytes", "name a file of call arguments")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"--args {reference} is not valid UTF-8", "save it as UTF-8") from None


def preset_names(folder: Path) -> list[str]:
    """The names of the presets in a folder."""
    return sorted({path.stem for path in folder.glob("*") if path.suffix.lower() in (".toml", ".json")})


def _presets_hint(folder: Path) -> str:
    names = preset_names(folder)
    here = Path("~") / folder.relative_to(Path.home()) if folder.is_relative_to(Path.home()) else folder
    return f"the presets are: {', '.join(names)}" if names else f"there are no presets in {here} yet: check the path"


def fitting(
    values: JsonObject, label: str, flags: Mapping[str, Flag], names: Collection[str]
) -> tuple[JsonObject, list[str]]:
    """What of a preset a pipeline takes, typed, and the names of what it does not take (item ids and outputs too).

    Raises UsageError for a value of another type than the pipeline's.
    """
    taken = set(names) - {"id", "output"}
    used = {name: value for name, value in values.items() if argument_name(name) in taken}
    typed = typed_values(used, from_json, f"--args {label}", flags, names)
    return typed, [name for name in values if name not in used]
