"""Reading a config: refused with one line that names the key, before anything runs."""

import difflib
from pathlib import Path
from typing import Any

import jsonschema
import yaml


def check_config(config: dict[str, Any], schema_path: str | Path) -> None:
    """Hold a config against its JSON schema.

    Raises:
        ValueError: naming the first key that is unknown, missing or of the wrong type or value.
    """
    schema = yaml.safe_load(Path(schema_path).read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors(config)
    error = jsonschema.exceptions.best_match(errors)
    if error is not None:
        raise ValueError(describe(error))


def describe(error: jsonschema.ValidationError) -> str:
    """One line for a person: the key with its path, what is wrong, and the likely mend."""
    path = ".".join(str(part) for part in error.absolute_path)
    schema: Any = error.schema
    found: Any = error.instance
    if error.validator == "additionalProperties":
        known = schema["properties"]
        unknown = sorted(set(found) - set(known))[0]
        near = difflib.get_close_matches(str(unknown), known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
        return f"config: unknown key `{'.'.join(filter(None, [path, str(unknown)]))}`; {hint}"
    if error.validator == "required":
        missing = sorted(set(schema["required"]) - set(found))[0]
        return f"config: key `{'.'.join(filter(None, [path, missing]))}` is missing"
    hint = ""
    if isinstance(found, bool):
        hint = " (YAML reads a bare NO, ON or YES as true or false: put quotes around it)"
    return f"config: `{path}`: {error.message}{hint}"
