"""Every setting, from its one declaration: command line -> settings -> recipe -> settings -> run file -> settings."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomlkit
import torch
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import imbalance_perturb as ip
from imbalance_perturb.cli.app import main
from imbalance_perturb.cli.options import (
    CommonOptions,
    CountsArgument,
    DebiasOptions,
    ModelArgument,
    ModelOptions,
    PredictRunOptions,
    PreprocessOptions,
    with_options,
)
from imbalance_perturb.cli.settings import resolve_settings
from imbalance_perturb.config.allowed import Flag
from imbalance_perturb.config.declarations import Declaration, declarations
from imbalance_perturb.config.recipe import load_recipe, update_recipe, write_recipe
from imbalance_perturb.config.settings import TABLES, PreprocessSettings, Settings
from imbalance_perturb.config.stored_settings import parse_settings, to_lists
from imbalance_perturb.data.preprocessing import select_preprocessing
from imbalance_perturb.errors import SettingsError
from imbalance_perturb.inference.inspection import write_complete_recipe
from tests.strategies import allowed_values, refused_texts, refused_values

DECLARED = [(table, entry) for table, kind in TABLES.items() for entry in declarations(kind).values()]
EVERY = pytest.mark.parametrize(("table", "entry"), DECLARED, ids=[entry.name for _, entry in DECLARED])

#: What a recipe may ask for but only the command line grants: it is given again where the recipe is read.
GRANTED = ("factory", "trust_model_file")

resolved: list[Settings] = []


@with_options
def _resolve(
    model: ModelArgument = None,
    counts: CountsArgument = None,
    *,
    model_options: ModelOptions,
    preprocess: PreprocessOptions,
    debias: DebiasOptions,
    run: PredictRunOptions,
    common: CommonOptions,
) -> None:
    resolved.append(resolve_settings(common, model_options, preprocess, debias, run, model=model, counts=counts)[0])


_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_app.command()(_resolve)
_command = typer.main.get_command(_app)


def from_command_line(*arguments: str) -> Settings:
    """The settings that a command resolves from these arguments."""
    resolved.clear()
    _command.main(list(arguments), standalone_mode=False)
    return resolved[-1]


def as_arguments(values: dict[str, Any]) -> list[str]:
    """The settings' values as options; what is not said is left out."""
    options, names = [], []
    for _, entry in DECLARED:
        value = values.get(entry.name)
        if value is None:
            continue
        if entry.argument:
            names.append(value)
        elif isinstance(entry.allowed, Flag):
            no = "" if value else "no-"
            options += [f"--{no}{entry.option}"] if value or entry.allowed.off else []
        else:
            listed = ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)
            text = json.dumps(value) if isinstance(value, dict) else listed
            options.append(f"--{entry.option}={text}")
    return [*options, "--", *names]


@st.composite
def values_of_all(draw: st.DrawFn) -> dict[str, Any]:
    """A value, or none, for every setting, which go together."""
    values = {entry.name: draw(allowed_values(entry)) for _, entry in DECLARED}
    for name in ("model", "counts"):
        values[name] = values[name] or name
    if None not in (values["arch"], values["factory"]):
        del values[draw(st.sampled_from(["arch", "factory"]))]
    if values["method"] == "offsets" and values["offsets"] is None:
        values["method"] = "perturb"
    if values["method"] in ("offsets", "tau-norm"):
        values["prior"] = "balanced"
    if values["perturb_at"] != "input":
        values["clip"], values["eps_space"] = False, "input"  # there are no pixels
    if isinstance(values["eps"], str):
        values["steps"] = 1
    values["preset"] = draw(st.sampled_from(["imagenet", "none"]))
    channels = 1 if values["color"] == "gray" else 3
    for name in ("mean", "std"):
        if values[name] is not None:
            values[name] = (values[name] * channels)[: draw(st.sampled_from([1, channels]))]
    if values["preset"] == "imagenet" and channels == 1:
        values["mean"], values["std"] = values["mean"] or (0.5,), values["std"] or (0.5,)
    for name, value in (("crop", "none"), ("jpeg_draft", False)):
        with suppress(SettingsError):
            select_preprocessing(build(values).preprocess)
            break
        values[name] = value
    return values


def build(values: dict[str, Any]) -> Settings:
    """The settings in Python."""
    tables: dict[str, dict[str, Any]] = {name: {} for name in TABLES}
    for table, entry in DECLARED:
        if values.get(entry.name) is not None:
            tables[table][entry.name] = values[entry.name]
    return Settings(**{name: TABLES[name](**table) for name, table in tables.items()})


def same_files(found: Settings) -> Settings:
    """The settings with the files they name as one path each, whatever way leads there."""
    tables = {
        name: replace(
            getattr(found, name),
            **{
                key: os.path.realpath(value)
                for key, entry in declarations(kind).items()
                if entry.names_file(value := getattr(getattr(found, name), key))
            },
        )
        for name, kind in TABLES.items()
    }
    return Settings(**tables)


def spelt_out(found: PreprocessSettings) -> PreprocessSettings:
    """Preprocessing with nothing left to the preset, as `init` writes it."""
    return replace(found, **vars(select_preprocessing(found)))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values_of_all())
def test_every_setting_comes_through_unchanged(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    """Command line -> settings -> `init`'s recipe -> settings -> run file -> settings is the identity."""
    given_settings = build(values)
    assert from_command_line(*as_arguments(values)) == given_settings

    path = tmp_path_factory.mktemp("identity") / "imbperturb.toml"
    write_complete_recipe(path, given_settings, select_preprocessing(given_settings.preprocess))
    again = as_arguments({name: values.get(name) for name in GRANTED})
    read = from_command_line("--recipe", str(path), *again)
    assert select_preprocessing(read.preprocess) == select_preprocessing(given_settings.preprocess)
    expected = replace(given_settings, preprocess=spelt_out(given_settings.preprocess))
    assert same_files(replace(read, preprocess=spelt_out(read.preprocess))) == same_files(expected)

    assert parse_settings(json.loads(json.dumps(asdict(read)))) == read


@EVERY
def test_every_setting_stands_in_the_recipe(table: str, entry: Declaration, tmp_path: Path) -> None:
    """`init` writes each setting under its description, commented out where it has no value."""
    path = tmp_path / "imbperturb.toml"
    write_complete_recipe(path, Settings(), select_preprocessing(PreprocessSettings()))
    lines = path.read_text().split(f"\n[{table}] ")[1].splitlines()
    (start,) = [index for index, line in enumerate(lines) if re.match(rf"(# )?{entry.name} =", line)]
    assert lines[start - 1].startswith(f"# {entry.help}")
    written = Settings().preprocess if table == "preprocess" else getattr(Settings(), table)
    value = getattr(spelt_out(written) if isinstance(written, PreprocessSettings) else written, entry.name)
    assert lines[start].startswith("# ") == (value is None)


@EVERY
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_value_out_of_range_is_refused_in_python_and_in_a_recipe(
    tmp_path_factory: pytest.TempPathFactory, table: str, entry: Declaration, data: st.DataObject
) -> None:
    """Each setting refuses what it was not declared to be, naming itself and, of a recipe, the file."""
    value = data.draw(refused_values(entry))
    with pytest.raises(SettingsError, match=f"^{entry.name} is .*; expected "):
        TABLES[table](**{entry.name: value})
    path = tmp_path_factory.getbasetemp() / "refused.toml"
    path.write_text(tomlkit.dumps({table: {entry.option: to_lists(value)}}), encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: [{table}] {entry.name} is ")


@pytest.mark.parametrize(
    "entry",
    [entry for _, entry in DECLARED if not refused_texts(entry).is_empty],
    ids=lambda entry: entry.name,
)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_value_out_of_range_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], entry: Declaration, data: st.DataObject
) -> None:
    """On the command line it ends with exit code 2 and a message that names the setting."""
    command = ["predict", "model.pth", "counts.json", "images"] if entry.only else ["inspect", "model.pth"]
    with pytest.raises(SystemExit) as ended:
        main([*command, f"--{entry.option}={data.draw(refused_texts(entry))}"])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(rf"error: {entry.name} is |Invalid value for '--{entry.option}'", err)


@EVERY
def test_defaults_and_preprocessing_are_as_declared(table: str, entry: Declaration) -> None:
    """A default is a value that the setting may have, and what preprocessing does can be said in settings."""
    assert entry.default is None or entry.allowed.accepts(entry.default)
    assert getattr(TABLES[table](), entry.name) == entry.default
    assert set(vars(select_preprocessing(PreprocessSettings()))) <= set(declarations(PreprocessSettings))


@settings(max_examples=50, deadline=None)
@given(values_of_all(), st.data())
def test_an_update_keeps_all_else(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], data: st.DataObject
) -> None:
    """Changing some entries of a recipe leaves every other entry and every comment."""
    path = tmp_path_factory.getbasetemp() / "updated.toml"
    write_recipe(path, build(values))
    before, text = load_recipe(path), path.read_text(encoding="utf-8")
    table = data.draw(st.sampled_from([name for name in TABLES if name != "model"]))
    chosen = data.draw(st.lists(st.sampled_from(list(declarations(TABLES[table]).values())), unique=True))
    new = {entry.name: data.draw(allowed_values(entry).filter(lambda value: value is not None)) for entry in chosen}
    update_recipe(path, table, new)
    found = load_recipe(path)
    for name in ("target", "prior"):
        if declarations(TABLES["debias"])[name].names_file(new.get(name)):
            new[name] = str(path.parent / new[name])
    assert found == before | {table: before[table] | new}
    comments = [line for line in text.splitlines() if line.startswith("# ")]
    assert [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")] == comments


def test_numbers_of_other_libraries_are_taken_by_their_value() -> None:
    """NumPy's, pandas' and torch's scalars and arrays are Python's numbers in every table and in all options."""
    eps = np.float32(0.001)
    for number in (eps, np.array(eps), torch.tensor(0.001)):
        found = ip.DebiasSettings(eps=number, steps=np.int64(2), clip=np.bool_(True))
        assert found == ip.DebiasSettings(eps=float(eps), steps=2, clip=True)
        assert [type(value) for value in (found.eps, found.steps, found.clip)] == [float, int, bool]
    pixels = ip.PreprocessSettings(mean=np.array([0.5, 0.25]), resize=(np.int64(8), np.int32(9)))
    assert repr(pixels) == repr(ip.PreprocessSettings(mean=(0.5, 0.25), resize=(8, 9)))
    grid = np.array([0.25, 0.5])
    made = [
        ip.IntervalOptions(level=np.float32(0.5), seed=np.int64(3)),
        ip.TuningOptions(eps_grid=grid, rule=ip.SelectionRule(folds=np.int64(4), significance=np.float32(0.5))),
        ip.ComparisonOptions(eps_grid=grid, level=np.float64(0.5)),
    ]
    for options in made:
        assert "np." not in repr(options)
        json.dumps(asdict(options))
    for wrong in (np.bool_(True), np.float64("nan"), np.array([1, 2]), "0.5"):
        with pytest.raises(ip.SettingsError):
            ip.DebiasSettings(eps=wrong)
    with pytest.raises(ip.SettingsError):
        ip.DebiasSettings(steps=np.float64(1.5))
