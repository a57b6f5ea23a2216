from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from imbalance_perturb.config.recipe import load_recipe, merge_settings, update_recipe, write_recipe
from imbalance_perturb.config.settings import DebiasSettings, ModelSettings, PreprocessSettings, RunSettings, Settings
from imbalance_perturb.config.stored_settings import parse_settings
from imbalance_perturb.errors import OutputFileError, SettingsError


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: DebiasSettings(eps=-0.1), "eps is -0.1"),
        (lambda: DebiasSettings(eps=float("nan")), "eps is nan"),
        (lambda: DebiasSettings(temperature=0), "temperature is 0"),
        (lambda: DebiasSettings(loss="hinge"), "loss is 'hinge'; expected one of cross-entropy, mse, focal"),
        (lambda: DebiasSettings(target="linear"), "target is 'linear'"),
        (lambda: DebiasSettings(target_m=0), "target_m is 0"),
        (lambda: DebiasSettings(eps_space="sphere"), "eps_space is 'sphere'"),
        (lambda: DebiasSettings(steps=0), "steps is 0"),
        (lambda: DebiasSettings(steps=True), "steps is True"),
        (lambda: DebiasSettings(tau=float("inf")), "tau is inf"),
        (lambda: PreprocessSettings(resize=0), "resize is 0"),
        (lambda: PreprocessSettings(crop=(1, 2, 3)), "crop is"),
        (lambda: PreprocessSettings(std=(0.1, 0.0, 0.1)), "std is"),
        (lambda: PreprocessSettings(mean=()), "mean is"),
        (lambda: PreprocessSettings(interpolation="cubic"), "interpolation is 'cubic'"),
        (lambda: PreprocessSettings(color="bgr"), "color is 'bgr'"),
        (lambda: ModelSettings(outputs="scores"), "outputs is 'scores'"),
        (
            lambda: ModelSettings(head_activation="swish"),
            "head_activation is 'swish'; expected one of relu, gelu, silu",
        ),
        (lambda: ModelSettings(arch="resnet18", factory="a:b"), "arch and factory are both given"),
        (lambda: ModelSettings(factory="module.function"), "factory is 'module.function'; expected package.module"),
        (lambda: RunSettings(device="tpu"), "device is 'tpu'"),
        (lambda: RunSettings(device="cpu:0"), "device is 'cpu:0'"),
        (lambda: RunSettings(batch_size=0), "batch_size is 0"),
        (lambda: RunSettings(workers=-1), "workers is -1"),
        (lambda: RunSettings(image_timeout=0), "image_timeout is 0; expected a number of seconds above 0"),
        (lambda: RunSettings(image_timeout=float("inf")), "image_timeout is inf"),
        (lambda: RunSettings(image_timeout=True), "image_timeout is True"),
        (lambda: RunSettings(precision="fp8"), "precision is 'fp8'; expected one of auto, fp32, bf16, fp16"),
        (lambda: RunSettings(close_calls_only="yes"), "close_calls_only is 'yes'; expected true or false"),
    ],
)
def test_values_out_of_range_name_the_option(make: type, cause: str) -> None:
    """Each setting out of range is an error that names it, the value and what is expected."""
    with pytest.raises(SettingsError, match=cause):
        make()


def test_a_recipe_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Settings survive the way through a recipe file; entries without a value take their defaults."""
    settings = Settings(
        model=ModelSettings(model="m.pt", counts="c.json", arch="resnet18", outputs="logits"),
        preprocess=PreprocessSettings(preset="none", resize=(64, 80), crop="none", mean=(0.5,), std=(0.1, 0.2, 0.3)),
        debias=DebiasSettings(eps=0.005, target="sqrt", clip=True, tau=0.25),
        run=RunSettings(device="cpu", batch_size=7, image_timeout=2.5, precision="bf16", close_calls_only=True),
    )
    path = tmp_path / "imbperturb.toml"
    write_recipe(path, settings)
    tables = load_recipe(path)
    assert tables["model"]["model"] == str(tmp_path / "m.pt")
    tables["model"] |= {"model": "m.pt", "counts": "c.json"}
    assert merge_settings(tables) == settings


def test_the_command_line_wins_over_the_recipe() -> None:
    """A later layer's entry wins, and what no layer names takes its default."""
    recipe = {"debias": {"eps": 0.5, "tau": 1.0}, "run": {"workers": 3}}
    settings = merge_settings(recipe, {"debias": {"eps": 0.25}})
    assert (settings.debias.eps, settings.debias.tau, settings.run.workers) == (0.25, 1.0, 3)
    assert settings.debias.temperature == 1000


def test_a_preset_keeps_what_no_preset_states() -> None:
    """Orientation, the value of white and how JPEGs are decoded stay as the recipe has them."""
    recipe = {"preprocess": {"resize": 64, "max_value": 4095, "exif_orientation": True, "jpeg_draft": True}}
    found = merge_settings(recipe, {"preprocess": {"preset": "none"}}).preprocess
    assert found == PreprocessSettings(preset="none", max_value=4095, exif_orientation=True, jpeg_draft=True)


def test_a_preset_on_the_command_line_drops_the_recipes_preprocessing() -> None:
    """A preset named later is not hidden behind single values of the recipe."""
    recipe = {"preprocess": {"preset": "imagenet", "resize": 64, "crop": 64}}
    assert merge_settings(recipe, {"preprocess": {"preset": "none"}}).preprocess == PreprocessSettings(preset="none")
    found = merge_settings(recipe, {"preprocess": {"crop": 32}}).preprocess
    assert found == PreprocessSettings(preset="imagenet", resize=64, crop=32)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("eps = 3", r"\[eps\] is not a table of a recipe"),
        ("[debiasing]\neps = 3", r"\[debiasing\] is not a table"),
        ("[debias]\nepsilon = 3", r"\[debias\] has no entry 'epsilon'; did you mean eps"),
        ("[debias\neps = 3", "the recipe is not TOML"),
        ("[debias]\neps = -3", r"\[debias\] eps is -3; expected a number, at least 0"),
        (f"[debias]\neps = 1{'0' * 400}", r"\[debias\] eps is 10+; expected a number, at least 0"),
        ("[preprocess]\nresize = [64]", r"\[preprocess\] resize is \(64,\); expected a number of pixels, H,W or none"),
        ("[preprocess]\ncrop = true", r"\[preprocess\] crop is True; expected a number of pixels"),
        ("[run]\nbatch-size = 4\nbatch_size = 8", r"\[run\] has batch_size twice, as batch-size too; leave one"),
    ],
)
def test_a_wrong_recipe_is_named_with_its_entry(text: str, cause: str, tmp_path: Path) -> None:
    """A recipe with an unknown table or entry, or that is no TOML, is an error naming file and entry."""
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=cause) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_recipe(tmp_path / "missing.toml")


def test_a_value_of_the_wrong_type_is_a_settings_error() -> None:
    """A string where a number belongs is refused with the entry's name."""
    with pytest.raises(SettingsError, match=r"eps is '0\.1'"):
        merge_settings({"debias": {"eps": "0.1"}})
    with pytest.raises(SettingsError, match="device is 3; expected text"):
        merge_settings({"run": {"device": 3}})
    with pytest.raises(SettingsError, match="clip is 1; expected true or false"):
        merge_settings({"debias": {"clip": 1}})
    with pytest.raises(SettingsError, match="arch is 5; expected text"):
        merge_settings({"model": {"arch": 5}})


def test_updating_keeps_comments_and_the_rest(tmp_path: Path) -> None:
    """Changing one entry leaves comments, order and other entries of the file alone."""
    path = tmp_path / "r.toml"
    path.write_text("# mine\n[debias]\neps = 0.001 # the paper's\ntau = 0.5\n")
    update_recipe(path, "debias", {"eps": 0.005, "loss": "mse"})
    update_recipe(path, "run", {"workers": 2})
    assert path.read_text().startswith('# mine\n[debias]\neps = 0.005 # the paper\'s\ntau = 0.5\nloss = "mse"\n')
    assert load_recipe(path) == {"debias": {"eps": 0.005, "tau": 0.5, "loss": "mse"}, "run": {"workers": 2}}
    with pytest.raises(OutputFileError, match="cannot be written"):
        write_recipe(tmp_path / "no" / "r.toml", Settings())


def test_updating_finds_an_entry_however_it_is_spelt(tmp_path: Path) -> None:
    """An entry written with '-' is changed where it stands, not doubled with '_'."""
    path = tmp_path / "r.toml"
    path.write_text('[debias]\neps-space = "pixel" # mine\n')
    update_recipe(path, "debias", {"eps_space": "input"})
    assert path.read_text() == '[debias]\neps-space = "input" # mine\n'


def test_a_recipe_does_not_hold_a_name_that_is_not_text(tmp_path: Path) -> None:
    """A file name that is not UTF-8 is refused in one line, since TOML is; nothing is left behind."""
    path = tmp_path / "r.toml"
    with pytest.raises(OutputFileError, match=r"cannot hold model .*not UTF-8"):
        write_recipe(path, Settings(model=ModelSettings(model="m\udcff.pt")))
    assert list(tmp_path.iterdir()) == []
    write_recipe(path, Settings())
    before = path.read_bytes()
    with pytest.raises(OutputFileError, match=r"cannot hold target .*not UTF-8"):
        update_recipe(path, "debias", {"target": "p\udcff.json"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_settings_of_a_run_file_are_complete() -> None:
    """A table or entry that is missing or not known is an error: a default would not be what the run had."""
    data = asdict(Settings())
    assert parse_settings(data) == Settings()
    for wrong, message in (
        (None, "model is no table of settings; expected model, counts, arch"),
        (data | {"run": None}, "run is no table of settings; expected engine, ray_address"),
        (data | {"run": {}}, "run.engine is missing; expected one of local, ray"),
        (data | {"run": data["run"] | {"gpu": 1}}, "run.gpu is not known; expected engine, ray_address"),
        (data | {"more": {}}, "more is not known; expected model, preprocess, debias, run"),
    ):
        with pytest.raises(SettingsError, match=f"^{message}"):
            parse_settings(wrong)
    with pytest.raises(SettingsError, match=r"^run\.workers is -1"):
        parse_settings(data | {"run": data["run"] | {"workers": -1}})
