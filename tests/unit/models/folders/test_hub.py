"""Names on the Hugging Face Hub, found in a cache of its layout: nothing is downloaded here."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from imbalance_perturb.errors import ModelFileError
from imbalance_perturb.models import load_classifier
from imbalance_perturb.models.folders import hub
from tests.functional.conftest import Workplace
from tests.model_folders import write_images, write_timm, write_transformers

huggingface_hub = pytest.importorskip("huggingface_hub")

COMMIT, OLDER = "a" * 39 + "1", "b" * 39 + "2"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub that nothing is added to."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def store(cache: Path, folder: Path, repository: str, commit: str, reference: str | None) -> None:
    """Lay a folder's files out as the hub's client does: blobs, snapshots of links to them, references."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "blobs").mkdir(parents=True, exist_ok=True)
    (place / "snapshots" / commit).mkdir(parents=True)
    for index, path in enumerate(sorted(folder.iterdir())):
        blob = place / "blobs" / f"{commit[:4]}{index:036d}"
        shutil.move(path, blob)
        (place / "snapshots" / commit / path.name).symlink_to(Path("../..") / "blobs" / blob.name)
    if reference is not None:
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / reference).write_text(commit)


def test_a_model_of_the_hub(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A branch stands for its commit, which the run file has; recipes keep the name, and `verify` takes the commit."""
    write_timm(tmp_path / "new")
    write_transformers(tmp_path / "old", "resnet")
    store(cache, tmp_path / "new", "owner/name", COMMIT, "main")
    store(cache, tmp_path / "old", "owner/name", OLDER, "v1.0")
    write_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    place = Workplace(tmp_path, capsys)
    Path("sub").mkdir()
    recipe = "sub/imbperturb.toml"
    made = place.run("init", "hf-hub:owner/name@v1.0", "counts.json", "-o", recipe, "--device", "cpu", "--workers", "0")
    assert made.code == 0, made.err
    assert 'model = "hf-hub:owner/name@v1.0"' in Path(recipe).read_text()
    done = place.run("predict", "images", "--recipe", recipe)
    assert done.code == 0, done.err
    assert f"revision 'v1.0' of owner/name is commit {OLDER}" in done.err
    run = json.loads(Path("predictions.run.json").read_text())
    assert run["model"]["path"] == f"hf-hub:owner/name@{OLDER}"
    assert run["model"]["format"] == "transformers folder"
    # The tag is moved, and the run is still of what it was.
    (cache / "models--owner--name" / "refs" / "v1.0").write_text(COMMIT)
    assert place.run("verify", "predictions.run.json").code == 0
    for name in ("hf-hub:owner/name", "hf_hub:owner/name@main", f"hf-hub:owner/name@{COMMIT}"):
        info = load_classifier(name).info
        assert (info.path, info.format) == (f"hf-hub:owner/name@{COMMIT}", "timm folder")
        assert any("is commit" in note for note in info.notes) == (COMMIT not in name)


@pytest.mark.parametrize(
    "model", ["hf-hub:", "hf-hub:a/b/c", "hf-hub:../x", "hf-hub:a/b@../../x", "hf-hub:a/b@", "hf-hub:a b"]
)
def test_names_that_are_none(model: str, cache: Path) -> None:
    """What is no name of the hub is refused before its client sees it."""
    with pytest.raises(ModelFileError, match="expected hf-hub:owner/name"):
        load_classifier(model)


def test_what_is_not_in_the_cache_without_a_network(cache: Path, tmp_path: Path) -> None:
    """The line says that the hub is not reached, and what to do."""
    with pytest.raises(ModelFileError, match=r"hf-hub:owner/name: revision 'main' is not.*run it once with a network"):
        load_classifier("hf-hub:owner/name")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
    store(cache, tmp_path / "f", "owner/name", COMMIT, "main")
    with pytest.raises(ModelFileError, match="no weights"):
        load_classifier("hf-hub:owner/name")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("GatedRepoError", "accept them on its page"),
        ("RepositoryNotFoundError", "no such model"),
        ("RevisionNotFoundError", "no revision 'v2'"),
        ("OfflineModeIsEnabled", "run it once with a network"),
        ("ConnectionError", "the hub does not give it (gone)"),
    ],
)
def test_errors_of_the_hub(name: str, what: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the client raises becomes one line with what to do."""
    kind = getattr(huggingface_hub.errors, name, ConnectionError)

    def fail(*arguments: Any, **more: Any) -> str:
        error = kind.__new__(kind)
        Exception.__init__(error, "gone")
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelFileError) as caught:
        hub.find_on_hub("hf-hub:owner/name@v2")
    assert str(caught.value).startswith("hf-hub:owner/name@v2: ")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where huggingface_hub is not installed the line says what brings it."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelFileError, match=r"pip install 'imbalance-perturb\[timm\]'"):
        load_classifier("hf-hub:owner/name")
