"""Which addresses are read: only those that the user has named, and those below them."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from featx.exceptions import DataError, FeatxError, ImageError, TooManyBadImagesError, UsageError
from featx.images import ManifestOptions, RemotePath, load_images, read_picture


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "simplecache::s3://bucket/a.jpg",
        "ssh://host/a.jpg",
        "github://org:repo@main/a.jpg",
        "local://etc/passwd",
        "https://user:secret@host/a.jpg",
        "https://good.org@evil.org/a.jpg",
        "https://good.org\\@evil.org/a.jpg",
        "s3://bucket/../other/a.jpg",
        "https://host/photos/%2e%2e/private/a.jpg",
        "https://host/photos/%252e%252e/private/a.jpg",
        "s3://bucket/a\n.jpg",
    ],
)
def test_other_schemes_passwords_and_ways_out_are_no_addresses(address: str) -> None:
    with pytest.raises(UsageError):
        RemotePath(address)


def test_an_address_is_a_text_that_survives_pickling() -> None:
    address = RemotePath("S3://bucket/photos/a b.jpg")
    copy = pickle.loads(pickle.dumps(address))
    assert (type(copy), copy, copy.name) == (RemotePath, "s3://bucket/photos/a b.jpg", "a b.jpg")


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        ("s3://bucket/photos", "cat/1.jpg", "s3://bucket/photos/cat/1.jpg"),
        ("s3://bucket/photos/", "cat\\1.jpg", "s3://bucket/photos/cat/1.jpg"),
        ("s3://bucket/photos", "s3://bucket/photos/cat/1.jpg", "s3://bucket/photos/cat/1.jpg"),
        ("s3://", "s3://any/1.jpg", "s3://any/1.jpg"),
        ("https://host/p", "a#b?.jpg", "https://host/p/a%23b%3F.jpg"),
        ("https://host/", "https://host/a.jpg?size=2", "https://host/a.jpg?size=2"),
    ],
)
def test_paths_below_an_address(root: str, path: str, expected: str) -> None:
    assert RemotePath(root).below(path) == expected


@pytest.mark.parametrize(
    ("root", "path"),
    [
        ("s3://bucket/photos", "../private/1.jpg"),
        ("s3://bucket/photos", "cat/../../private/1.jpg"),
        ("s3://bucket/photos", "cat\\..\\..\\private\\1.jpg"),
        ("s3://bucket/photos", "s3://bucket/photos2/1.jpg"),
        ("s3://bucket", "s3://bucket2/1.jpg"),
        ("s3://bucket", "https://169.254.169.254/latest/meta-data"),
        ("s3://bucket", "/etc/passwd"),
        ("s3://bucket", " "),
        ("https://host/p", "http://host/p/1.jpg"),
        ("https://host/p", "https://host.evil.org/p/1.jpg"),
        ("https://host/p", "https://host/p/%2e%2e/private"),
        ("https://host/p", "ftp://host/p/1.jpg"),
    ],
)
def test_nothing_else_is_below_an_address(root: str, path: str) -> None:
    with pytest.raises(ValueError, match=r"below|address"):
        RemotePath(root).below(path)


class Web:
    """A web server of some files, which counts requests."""

    def __init__(self, files: dict[str, bytes], leads_to: str = "") -> None:
        web = self
        self.paths: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                web.paths.append(self.path)
                if leads_to:
                    self.send_response(302)
                    self.send_header("Location", leads_to)
                    self.end_headers()
                    return
                data = files.get(self.path)
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data or b"")

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def served(files: dict[str, bytes], leads_to: str = "") -> Iterator[Web]:
    pytest.importorskip("aiohttp", reason="needs the extra featx[remote]")
    web = Web(files, leads_to)
    try:
        yield web
    finally:
        web.server.shutdown()
        web.server.server_close()


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATX_REMOTE_CACHE", str(tmp_path / "copies"))


@pytest.fixture
def image(picture, tmp_path: Path) -> bytes:
    picture().save(tmp_path / "one.png")
    return (tmp_path / "one.png").read_bytes()


def test_a_manifest_of_this_disk_sends_no_request_unless_root_allows_it(image: bytes, tmp_path: Path) -> None:
    with served({"/p/a.png": image}) as web:
        manifest = tmp_path / "m.csv"
        manifest.write_text(f"path,label\n{web.address}/p/a.png,x\n")
        with pytest.raises(DataError, match=f"give --root {web.address}/p/") as refused:
            load_images(manifest)
        assert web.paths == []
        root = str(refused.value).rpartition("--root ")[2].rstrip(".")
        found = load_images(manifest, table=ManifestOptions(root=root))
        assert read_picture(found.sources[0]).data == image
        with pytest.raises(DataError, match="1 of its 1 images are not below"):
            load_images(manifest, table=ManifestOptions(root=f"{web.address}/other"))


def test_one_address_among_paths_is_refused(image: bytes, tmp_path: Path) -> None:
    rows = "".join(f"one.png,{number % 2}\n" for number in range(500))
    (tmp_path / "m.csv").write_text(f"path,label\n{rows}http://127.0.0.1:9/a.png,x\n{rows}")
    with pytest.raises(DataError, match="1 of its 1001 paths are addresses"):
        load_images(tmp_path / "m.csv", labelled=False)


def test_a_plain_text_is_never_read_as_an_address(image: bytes) -> None:
    with served({"/a.png": image}) as web:
        with pytest.raises(ImageError, match=r"as featx.images.RemotePath\(") as refused:
            read_picture(f"{web.address}/a.png")
        with pytest.raises(FeatxError):
            load_images(f"{web.address}/a.png")
        assert "RemotePath" in str(refused.value)
        assert web.paths == []
        assert read_picture(RemotePath(f"{web.address}/a.png")).data == image


def test_a_manifest_on_the_web_names_what_is_below_it(image: bytes) -> None:
    with served({}) as other:
        table = b"path,label\ncat/1.png,cat\n%s/p/dog/1.png,dog\n"
        files = {"/p/cat/1.png": image, "/p/dog/1.png": image}
        with served(files) as web:
            files["/p/m.csv"] = table % web.address.encode()
            found = load_images(RemotePath(f"{web.address}/p/m.csv"))
            assert [read_picture(source).data for source in found.sources] == [image, image]
            assert found.labels.tolist() == ["cat", "dog"]
            files["/p/m.csv"] = table % other.address.encode()
            with pytest.raises(DataError, match="1 of its 2 images are not below"):
                load_images(RemotePath(f"{web.address}/p/m.csv"))
            assert other.paths == []


def test_an_answer_that_leads_to_another_server_is_not_followed(image: bytes) -> None:
    with served({"/a.png": image}) as inner, served({}, leads_to=f"{inner.address}/a.png") as web:
        with pytest.raises(ImageError, match=f"leads to another one, {inner.address}"):
            read_picture(RemotePath(f"{web.address}/a.png"))
        assert inner.paths == []


def test_what_a_web_server_lacks_is_named_and_its_folders_are_refused() -> None:
    with served({}) as web:
        with pytest.raises(ImageError, match="no such file"):
            read_picture(RemotePath(f"{web.address}/none.jpg"))
        with pytest.raises(UsageError, match="does not list its folders"):
            load_images(RemotePath(f"{web.address}/photos/"))


def test_a_list_of_texts_names_the_fix() -> None:
    from featx.classifier.inputs import refuse_absent

    images = load_images(["https://example.org/a.jpg", "https://example.org/b.jpg"])
    with pytest.raises(TooManyBadImagesError, match=r"as featx.images.RemotePath\("):
        refuse_absent(images, 0.05)
