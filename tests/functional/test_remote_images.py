"""Images by URL: the rows are those of the same folder on this machine, whatever is wrong with a file or the store."""

from __future__ import annotations

import csv
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from imbalance_perturb.data.image_files import find_images, iter_sizes
from imbalance_perturb.data.remote_files import RemotePath, find_place
from imbalance_perturb.errors import ImageError, ImageFolderError
from tests.functional.conftest import SMALL, Workplace

pytest.importorskip("pyarrow", reason="needs pyarrow (the extra cloud)")

# Of moto's server.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

#: Images of the folder.
IMAGES = 256


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nobody, and no asking the network for others."""
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "nobody"),
        ("AWS_SECRET_ACCESS_KEY", "nothing"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, one of which is broken and one empty, in folders; what is no image, and what is hidden."""
    made, rng = tmp_path_factory.mktemp("remote") / "images", np.random.default_rng(0)
    for index in range(IMAGES):
        path = made / ("", "day 1/", "day 1/ä?x=1/")[index % 3] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (34, 36, 3), dtype=np.uint8)).save(path)
    (made / "003.png").write_bytes(b"broken")
    (made / "006.png").write_bytes(b"")
    (made / "readme.txt").write_text("no image")
    (made / ".thumbs").mkdir()
    (made / ".thumbs" / "0.png").write_bytes(b"hidden")
    (made / "some.csv").write_text("image\nday 1/001.png\n003.png\ngone.png\n")
    (made / "some.lst").write_text("000.png\nday 1/001.png\n000.png\n")
    return made


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[str]:
    """The same in an S3 of this machine; what a URL of its bucket ends in."""
    boto3 = pytest.importorskip("boto3", reason="needs moto[s3], flask and flask-cors")
    server = pytest.importorskip("moto.server", reason="needs moto[s3], flask and flask-cors")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    address = "http://{}:{}".format(*running.get_host_and_port())
    client = boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    client.create_bucket(Bucket="archive")
    for path in folder.rglob("*"):
        if path.is_file():
            client.put_object(Bucket="archive", Key=f"2026/{path.relative_to(folder)}", Body=path.read_bytes())
    yield f"?endpoint_override={address}&region=us-east-1"
    running.stop()


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


COMMAND = ("predict", "model.pth", "counts.json", *SMALL, "--arch", "shufflenet_v2_x0_5", "--probs", "--quiet")


def test_a_folder_in_a_store_has_the_rows_of_the_folder(workplace: Workplace, folder: Path, store: str) -> None:
    """256 images, one of them broken, one empty: the same bytes, by decoders of their own; and the run is verified."""
    url = f"s3://archive/2026/{store}"
    for workers in ("1", "0"):
        out = f"{workers}.csv"
        assert workplace.run(*COMMAND, str(folder), "-o", out, "--workers", workers).code == 3
        (workplace.folder / out).rename(workplace.folder / "here.csv")
        (workplace.folder / f"{workers}.run.json").rename(workplace.folder / "here.run.json")
        finished = workplace.run(*COMMAND, url, "-o", out, "--workers", workers)
        assert finished.code == 3, finished.err
        assert (workplace.folder / out).read_bytes() == (workplace.folder / "here.csv").read_bytes()
        here, there = (json.loads((workplace.folder / f"{name}.run.json").read_text()) for name in ("here", workers))
        assert there["images"]["source"] == f"s3://archive/2026{store}"
        for name in ("list_sha256", "files_sha256", "ignored_files", "hidden", "failed"):
            assert there["images"][name] == here["images"][name]
    failed = {row["image"]: row["error"] for row in rows_of(workplace.folder / "1.csv") if row["error"]}
    assert failed.keys() == {"003.png", "006.png"}
    assert failed["006.png"] == "the file is empty (0 bytes)"
    verified = workplace.run("verify", "1.csv", "--sample", "8")
    assert verified.code == 0, verified.err


@pytest.mark.parametrize("name", ["some.csv", "some.lst", "day 1/001.png"])
def test_tables_lists_and_images_in_a_store(name: str, workplace: Workplace, folder: Path, store: str) -> None:
    """Names in a table or list are relative to its folder there; what is not there has its row."""
    codes = [
        workplace.run(*COMMAND, images, "-o", f"{out}.csv").code
        for out, images in (("here", str(folder / name)), ("there", f"s3://archive/2026/{name}{store}"))
    ]
    assert codes[0] == codes[1]
    assert (workplace.folder / "here.csv").read_bytes() == (workplace.folder / "there.csv").read_bytes()
    if name == "some.csv":
        assert rows_of(workplace.folder / "there.csv")[2]["error"] == "no such file or directory"


def test_a_url_of_this_machine_is_its_path(workplace: Workplace, folder: Path) -> None:
    """file:// needs no store."""
    found = find_images(folder.as_uri())
    assert found == find_images(folder)
    assert isinstance(found.root, Path)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://archive/2025", "no such file or folder"),
        ("s3://nowhere/2026", "no such file or folder"),
        ("s3://archive/2026/day 1/ä?x=1", None),
        ("s3://archive/2026/.thumbs", None),
    ],
)
def test_what_is_not_there_is_told(url: str, words: str | None, store: str) -> None:
    """A bucket, a folder, a name with marks of a URL."""
    if words is None:
        assert find_images(url + store).names
    else:
        with pytest.raises(ImageFolderError, match=words):
            find_images(url + store)


def test_a_url_stands_alone(folder: Path, store: str) -> None:
    """Beside other images it is refused, before anything is read."""
    with pytest.raises(ImageFolderError, match=r"s3://archive/2026.*a URL is given alone"):
        find_images([folder, f"s3://archive/2026{store}"])


def test_a_password_is_not_repeated() -> None:
    """A URL with a password is refused, and the password is not in the message."""
    with pytest.raises(ImageFolderError, match="holds a password") as caught:
        find_images("s3://key:secret@bucket/images")
    assert "secret@" not in str(caught.value)
    with pytest.raises(ImageFolderError, match="Unexpected query parameter"):
        find_images("s3://bucket/images?colour=red")


class Faulty(BaseHTTPRequestHandler):
    """As much of S3 as reading a file takes, which answers some keys with an error, some times or always."""

    FILES: ClassVar[dict[str, bytes]] = {"fine.png": b"fine", "forbidden.png": b"x", "busy.png": b"y", "slow.png": b"z"}
    FAULTS: ClassVar[dict[str, tuple[int, int]]] = {
        "forbidden.png": (403, 999),
        "busy.png": (503, 1),
        "slow.png": (503, 999),
    }
    asked: ClassVar[Counter[str]] = Counter()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        key = self.path.partition("?")[0].rpartition("/")[2]
        status, times = self.FAULTS.get(key, (0, 0))
        self.asked[key] += 1
        content = self.FILES.get(key)
        if self.asked[key] > times:
            status = 404 if content is None else 206 if "Range" in self.headers else 200
        body = content or b"" if status < 300 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes 0-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def faulty() -> Iterator[RemotePath]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    Faulty.asked.clear()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    place = find_place(f"s3://archive/2026?endpoint_override=http://127.0.0.1:{server.server_port}&region=us-east-1")
    assert isinstance(place, RemotePath)
    yield place
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_a_store_answers_becomes_a_reason(faulty: RemotePath) -> None:
    """404 and 403 are the words that a file of this machine has; 503 is tried again, and told when it stays."""
    assert (faulty / "fine.png").read() == b"fine"
    assert (faulty / "busy.png").read() == b"y"
    assert Faulty.asked["busy.png"] == 3  # one that failed, the size, the file
    for name, words in (
        ("gone.png", "^no such file or directory$"),
        ("forbidden.png", "^permission denied$"),
        ("slow.png", "503|SLOW_DOWN|SERVICE_UNAVAILABLE|service"),
    ):
        with pytest.raises(ImageError, match=words) as caught:
            (faulty / name).read()
        assert "\n" not in str(caught.value)
    assert Faulty.asked["slow.png"] > 2


def test_sizes_of_what_is_gone(store: str) -> None:
    """The bytes of each file, in any order; None for what is not there."""
    root = find_place(f"s3://archive/2026{store}")
    assert list(iter_sizes(root, ["gone.png", "006.png", "003.png"])) == [None, 0, 6]
