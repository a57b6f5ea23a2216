"""Who may let code run: a file can ask for it, only the command line of this very run can grant it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imbalance_perturb.errors import SettingsError, printable

#: Entries of a recipe's or a run file's ``[model]`` that ask for code to be run.
ASKING = ("factory", "trust_model_file")


def grant_code(file: Path, model: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Grant the code that a file asks for only where the command line does, and refuse it otherwise.

    Args:
        file: a recipe or a run file, for messages.
        model: its entries of the table ``[model]``; those of :data:`ASKING` must not be taken from there.
        given: what the command line says of the same table.

    Returns:
        ``given``; where the file wrote down the hash of the model that was trusted, bound to that one.

    Raises:
        SettingsError: naming the file, its entry and the option that grants it, if the command line does not answer.
    """
    factory, trust = (model.get(key) for key in ASKING)
    if factory is not None and not given.keys() & {"arch", "factory"}:
        raise _refusal(file, f"factory = {str(factory)!r}", f"--factory {shlex.quote(printable(str(factory)))}")
    if trust is None or trust is False:
        return dict(given)
    if "trust_model_file" not in given:
        entry = "trust-model-file = " + ("true" if trust is True else repr(trust))
        raise _refusal(file, entry, "--trust-model-file (--no-trust-model-file keeps the guard on)")
    # The hash is of the file's own model; another one that the command line names is another matter.
    own = "model" not in given or Path(str(given["model"])).resolve() == Path(str(model.get("model"))).resolve()
    bound = given["trust_model_file"] is True and trust is not True and own
    return {**given, "trust_model_file": trust} if bound else dict(given)


def _refusal(file: Path, entry: str, option: str) -> SettingsError:
    return SettingsError(
        f"{printable(str(file))}: {entry} asks for code to be run, which a file cannot grant, only the command line; if"
        f" you trust where it comes from, give {option}"
    )
