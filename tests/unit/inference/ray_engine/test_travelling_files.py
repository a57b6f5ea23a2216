"""Files on their way to the workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imbalance_perturb.config.settings import DebiasSettings, ModelSettings, Settings
from imbalance_perturb.errors import ClusterError, ModelFileError
from imbalance_perturb.inference.ray_engine.travelling_files import pack, unpacked


def same(content: Any) -> Any:
    return content


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name in ("model.pt", "config.json", "counts.json", "target.json", "prior.json", "other.pt"):
        (tmp_path / name).write_text(name)
    return Settings(
        model=ModelSettings(model=str(tmp_path / "model.pt"), counts=str(tmp_path / "counts.json")),
        debias=DebiasSettings(target=str(tmp_path / "target.json"), prior=str(tmp_path / "prior.json")),
    )


def test_every_file_that_settings_name_arrives(settings: Settings, tmp_path: Path) -> None:
    """Model, what says how it is built, counts, target and prior; the originals may be gone, nothing is left behind."""
    luggage = pack(settings, same)
    for path in tmp_path.iterdir():
        path.unlink()
    with unpacked(luggage, same) as (there, back):
        places = [there.model.model, there.model.counts, there.debias.target, there.debias.prior]
        assert [Path(str(place)).read_text() for place in places] == [
            "model.pt", "counts.json", "target.json", "prior.json",
        ]  # fmt: skip
        assert Path(str(places[0])).with_name("config.json").read_text() == "config.json"
        assert not Path(str(places[0])).with_name("other.pt").exists()
        assert back[str(places[1])] == settings.model.counts
    assert not Path(str(places[0])).parent.parent.exists()


def test_a_folder_arrives_as_one(tmp_path: Path) -> None:
    """Of a folder the configs and the weights, under the name that timm gives it; a name on the hub stays as it is."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "notes.txt"):
        (folder / name).write_text(name)
    settings = Settings(model=ModelSettings(model=f"local-dir:{folder}"))
    with unpacked(pack(settings, same), same) as (there, _):
        assert there.model.model is not None
        prefix, _, place = there.model.model.partition(":")
        assert prefix == "local-dir"
        assert sorted(path.name for path in Path(place).iterdir()) == ["config.json", "model.safetensors"]
    hub = replace(settings, model=ModelSettings(model="hf-hub:owner/name"))
    with unpacked(pack(hub, same), same) as (there, _):
        assert there == hub


def test_damage_on_the_way_is_seen(settings: Settings) -> None:
    """Bytes that are not those that were sent are refused, naming the file."""
    with (
        pytest.raises(ClusterError, match=r"model\.pt: came damaged to a worker"),
        unpacked(pack(settings, same), lambda content: np.append(content, np.uint8(0))),
    ):
        pass


def test_errors_name_files_as_they_were_given(settings: Settings) -> None:
    """What a worker says of a file names it as whoever started the run did."""
    with pytest.raises(ModelFileError) as raised, unpacked(pack(settings, same), same) as (there, _):
        raise ModelFileError(f"{there.model.model}: is no model")
    assert str(raised.value) == f"{settings.model.model}: is no model"
