"""Places keep their law wherever they are: a folder, an fsspec file system, a real S3-compatible server."""

import errno
import hashlib
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from medsr.io import find_scans
from medsr.io.places import Bucket, Folder, Place, place, public_name
from medsr.scan import ScanError
from tests.object_store import bucket

__all__ = ["bucket"]

Fresh = Callable[[], Place]


@pytest.fixture(params=["folder", "memory", "s3"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place of each kind."""
    if request.param == "folder":
        return place(tmp_path / "results")
    if request.param == "memory":
        pytest.importorskip("fsspec")
        return place(f"memory://{tmp_path.name}/results")
    return place(f"{request.getfixturevalue('bucket')}/results")


def test_what_is_put_is_got_until_it_is_deleted(fresh: Place) -> None:
    assert not fresh.exists()
    assert fresh.keys() == []
    assert fresh.get("0/c/0/1") is None
    assert fresh.digest("0/c/0/1") is None
    fresh.delete("0/c/0/1")
    data = os.urandom(100_000)
    fresh.put("0/c/0/1", b"older and shorter")
    fresh.put("0/c/0/1", data)
    fresh.put("0/c/0/10", memoryview(data)[:7])
    fresh.put("zarr.json", b"")
    assert fresh.exists()
    assert fresh.get("0/c/0/1") == data
    assert fresh.get("zarr.json") == b""
    assert fresh.get("0/c/0/10") == data[:7]
    assert fresh.digest("0/c/0/1") == hashlib.blake2b(data, digest_size=16).hexdigest()
    assert fresh.keys() == ["0/c/0/1", "0/c/0/10", "zarr.json"]
    assert fresh.keys("0/c/0/1") == ["0/c/0/1", "0/c/0/10"]
    assert fresh.keys("0/c/") == fresh.keys("0/")
    assert fresh.keys("1/") == []
    fresh.delete("0/c/0/1")
    assert fresh.get("0/c/0/1") is None
    assert fresh.keys("0/") == ["0/c/0/10"]


def test_a_child_is_the_same_files_under_shorter_keys(fresh: Place) -> None:
    fresh.put("a.ome.zarr/0/c/0", b"1")
    child = fresh.child("a.ome.zarr")
    child.put("zarr.json", b"{}")
    assert child.keys() == ["0/c/0", "zarr.json"]
    assert fresh.get("a.ome.zarr/zarr.json") == b"{}"
    fresh.child("a.ome.zarr2").put("x", b"2")
    child.clear()
    assert not child.exists()
    assert fresh.keys() == ["a.ome.zarr2/x"]
    child.clear()
    fresh.clear()
    assert not fresh.exists()


def test_a_place_travels_and_many_threads_write_to_it(fresh: Place) -> None:
    there: Place = pickle.loads(pickle.dumps(fresh))
    assert there == fresh
    assert there.name == fresh.name
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: there.put(f"{i % 20}/{i}", bytes([i]) * 1000), range(100)))
        list(pool.map(lambda _: there.put("same", b"x" * 100_000), range(20)))
    assert len(fresh.keys()) == 101
    assert fresh.get("same") == b"x" * 100_000
    assert all(fresh.get(f"{i % 20}/{i}") == bytes([i]) * 1000 for i in range(0, 100, 9))


def test_a_zarr_store_of_it_reads_and_does_not_write(fresh: Place) -> None:
    import zarr

    metadata = b'{"zarr_format": 3, "node_type": "group", "attributes": {"a": 1}}'
    fresh.put("zarr.json", metadata)
    assert dict(zarr.open_group(fresh.zarr_store(), mode="r").attrs) == {"a": 1}
    with pytest.raises(ValueError, match="read-only"):
        zarr.create_group(fresh.zarr_store(), path="b")


WRITER = """
import os, sys
from pathlib import Path
from medsr.io.places import Folder
folder = Folder(Path(sys.argv[1]))
print("begun", flush=True)
while True:
    for letter in b"abc":
        folder.put("0/shard", bytes([letter]) * 3_000_000)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    whole = {bytes([letter]) * 3_000_000 for letter in b"abc"}
    folder = Folder(tmp_path)
    for delay in (0.0, 0.003, 0.011, 0.023, 0.05):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        threading.Event().wait(delay)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        found = folder.get("0/shard")
        assert found is None or found in whole
        assert folder.keys() in ([], ["0/shard"])


def test_a_full_disk_is_named_and_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    folder.put("a/b", b"older")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a/b'") as caught:
        folder.put("a/b", b"newer")
    assert caught.value.errno == errno.ENOSPC
    assert folder.get("a/b") == b"older"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_really_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsr.io.places._made", lambda part: (part.touch(), open("/dev/full", "wb"))[1])  # noqa: SIM115
    with pytest.raises(OSError, match="No space left") as caught:
        Folder(tmp_path).put("a", b"x" * 1_000_000)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_locations_are_folders_or_urls(tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    for location in (tmp_path, str(tmp_path), "file://" + str(tmp_path)):
        found = place(location)
        assert isinstance(found, Folder)
        assert found.path == tmp_path
        assert found.is_local
        assert found.name == str(tmp_path)
    for location in ("s3://lab/runs/1/", Path("s3://lab/runs/1"), "S3://lab/runs/1"):
        found = place(location)
        assert found.name == "s3://lab/runs/1"
        assert not found.is_local
        assert found.child("a").name == "s3://lab/runs/1/a"
    assert isinstance(place("C:/data"), Folder)


def test_no_secret_is_shown() -> None:
    pytest.importorskip("aiohttp")
    secret = place("https://user:pass%40word@host.org/a/b.zarr?X-Amz-Signature=token#part")
    shown = f"{secret!r} {secret.name} {place('https://user:pass@host.org/a').child('c')!r}"
    assert "https://host.org/a/b.zarr" in shown
    assert not any(word in shown for word in ("user", "pass", "word@", "Amz", "token", "part"))
    assert public_name("abfs://lab@account.net/a") == "abfs://lab@account.net/a"  # no user: the container
    assert public_name("s3://lab/scan #3.tif") == "s3://lab/scan #3.tif"  # no fragment: part of the key


SIGNED = "?X-Amz-Credential=AKIAUSER%2F20260101%2Fus-east-1&X-Amz-Signature=deadbeef"


def test_no_message_of_a_client_shows_a_secret() -> None:
    """A signed URL is refused; the client words it anew ("/" for "%2F"), and a chained traceback would show it too."""
    pytest.importorskip("aiohttp")

    class Refused(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refused) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/x.tif{SIGNED}"
        for call in (lambda: find_scans(url), lambda: Bucket(url).get(""), lambda: Bucket(url).version()):
            with pytest.raises((OSError, ScanError), match=r"127\.0\.0\.1.*/x\.tif") as caught:
                call()
            shown = "".join(traceback.format_exception(caught.value))
            assert not any(word in shown for word in ("AKIAUSER", "deadbeef", "X-Amz"))
        server.shutdown()


@pytest.mark.parametrize(
    "said",
    [
        "cannot reach https://me:hunter22@host.org/a?x=1",
        "GET URL('https://host.org/a?sig=AKIAUSER/2026&se=2')",
        "no way to /a?X-Amz-Signature=deadbeef of host",
        "login of me with hunter22 failed",
        "bad signature AKIAUSER/20260101",
    ],
)
def test_a_secret_of_the_url_is_in_no_message(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class UnknownError(Exception):
        pass

    class Files:
        def _strip_protocol(self, url: str) -> str:
            return url

        def info(self, _path: str) -> None:
            raise UnknownError(said)

    monkeypatch.setattr("medsr.io.bucket._file_system", lambda host, process: Files())
    url = "https://me:hunter22@host.org/a?X-Amz-Credential=AKIAUSER%2F20260101&X-Amz-Signature=deadbeef"
    with pytest.raises(OSError, match="Unknown") as caught:
        Bucket(url).version()
    shown = "".join(traceback.format_exception(caught.value))
    assert not any(word in shown.split("Error:", 1)[-1] for word in ("hunter22", "AKIAUSER", "deadbeef", "sig="))


def test_a_signed_url_is_no_folder(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    signed = place(f"https://host.org/a.zarr{SIGNED}")
    for call in (lambda: signed.child("b"), lambda: signed.get("zarr.json"), lambda: signed.keys()):
        with pytest.raises(OSError, match=r"with a query.*environment.*https://host\.org/a\.zarr"):
            call()


@pytest.mark.parametrize("scheme", ["sftp", "smb", "hdfs", "https", "ftp"])
def test_results_go_only_where_an_object_is_written_whole(scheme: str) -> None:
    with pytest.raises(OSError, match=rf"{scheme}://.*torn.*s3://.*{scheme}://host/out") as caught:
        Bucket(f"{scheme}://host/out").put("a", b"1")
    assert caught.value.errno == errno.EOPNOTSUPP


def test_a_store_without_a_cache_of_listings_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of sftp and smb hand options that they do not know to the connection, which refuses them."""
    import fsspec

    given: dict[str, dict[str, object]] = {}
    monkeypatch.setattr(fsspec, "url_to_fs", lambda host, **options: (given.setdefault(host, options), ""))
    for host in ("sftp://one-host", "s3://one-host"):
        Bucket(f"{host}/a")._files  # noqa: B018
    assert given == {"sftp://one-host": {}, "s3://one-host": {"use_listings_cache": False}}


def test_an_unknown_or_uninstalled_kind_of_store_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nosuch://a/b: expected .* found nosuch://.*check the name"):
        place("nosuch://a/b")
    code = "import sys; sys.modules['s3fs'] = None; from medsr.io.places import place; place('s3://a/b')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = "ValueError: s3://a/b: expected the package for s3:// URLs, found none; pip install 'medsr[s3]'"
    assert said in ended.stderr


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    missing = place(f"{bucket}-gone/results")
    assert isinstance(missing, Bucket)
    with pytest.raises(OSError, match=r"bucket does not exist.*-gone/results/a/b") as caught:
        missing.put("a/b", b"1")
    assert caught.value.errno == errno.ENOENT
    assert missing.get("a/b") is None
    assert not missing.exists()


def test_a_store_that_does_not_answer_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    once = {"retries": {"max_attempts": 0}}
    closed = fsspec.filesystem("s3", use_listings_cache=False, endpoint_url="http://127.0.0.1:9", config_kwargs=once)
    monkeypatch.setattr("medsr.io.bucket._file_system", lambda host, process: closed)
    monkeypatch.setattr(type(closed), "retries", 1)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9.*s3://lab/a") as caught:
        Bucket("s3://lab").put("a", b"1")
    assert caught.value.errno == errno.EIO


def test_what_another_writer_has_put_is_seen_at_once(bucket: str) -> None:
    mine, other = Bucket(f"{bucket}/results"), f"{bucket}/results"
    mine.put("0/c/1", b"1")
    assert mine.keys() == ["0/c/1"]
    assert mine.child("0/c").entries() == ([], ["1"])
    code = "import sys; from medsr.io.places import place; place(sys.argv[1]).put('0/c/0', b'1')"
    subprocess.run([sys.executable, "-c", code, other], check=True, env=dict(os.environ))
    assert mine.keys() == ["0/c/0", "0/c/1"]
    assert mine.child("0/c").entries() == ([], ["0", "1"])
