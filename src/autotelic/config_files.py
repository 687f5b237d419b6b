"""Config files: values that stand for flags, from YAML, JSON, or another run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from .errors import UsageError, unknown
from .json_files import value_of
from .plugin_files import absolute


@dataclass(frozen=True)
class ConfigFile:
    """What a config file says.

    Attributes:
        name: how it was named.
        values: flag (without dashes in front) -> value.
        recipe: the run's, where it is a run's; else empty.
        use: plugins that the run imported.
    """

    name: str
    values: Mapping[str, Any]
    recipe: str = ""
    use: tuple[str, ...] = ()


def read_config(name: str) -> ConfigFile:
    """A FILE.yaml, a FILE.json, a run's folder or its config.json.

    Raises:
        UsageError: there is none, or it does not hold flags with values.
    """
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise UsageError(f"there is no file {path} to take a config from")
    try:
        content = value_of(path.read_bytes(), str(path)) if path.suffix == ".json" else _yaml(path.read_text())
    except UsageError:
        raise
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f'{path} holds a {type(content).__name__}: write one line "flag: value" for each flag')
    if isinstance(content.get("config"), dict) and "recipe" in content:
        run = absolute({key: content.get(key) for key in ("recipe", "config", "use")}, path.parent)
        return ConfigFile(name, run["config"], run["recipe"], tuple(run["use"] or ()))
    return ConfigFile(name, content)


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("too many brackets inside each other") from error


def as_words(file: ConfigFile, config: Any) -> list[str]:
    """The command-line words that say what a config file says.

    Raises:
        UsageError: the config has no such field; the nearest are told.
    """
    return list(_words(file.values, config, file.name, ""))


def _words(values: Mapping[str, Any], config: Any, name: str, prefix: str) -> Iterator[str]:
    hints = get_type_hints(type(config))
    known = {field.name for field in fields(config)}
    for key, value in values.items():
        field = str(key).replace("-", "_")
        if field not in known:
            raise unknown(f"field in {name}", f"{prefix}{field}", [f"{prefix}{each}" for each in known])
        flag = f"--{prefix}{field}".replace("_", "-")
        if is_dataclass(getattr(config, field)) and isinstance(value, Mapping):
            yield from _words(value, getattr(config, field), name, f"{prefix}{field}.")
        elif isinstance(value, bool) and hints[field] is bool:
            yield flag if value else f"--{prefix}no-{field}".replace("_", "-")
        elif isinstance(value, list):
            yield from (flag, *_flat(value))
        else:
            text = str(value)
            yield from [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _flat(values: list[Any]) -> Iterator[str]:
    for value in values:
        yield from _flat(value) if isinstance(value, list) else [str(value)]
