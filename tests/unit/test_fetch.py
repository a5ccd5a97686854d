"""Downloads against a real HTTP server in this process: resumed, cut off, refused, wrong."""

import dataclasses
import hashlib
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from outlie.commands.data import main as data
from outlie.data.adbench import ADBench
from outlie.data.adbench_files import DataFile, one_file
from outlie.data.fetch import download
from outlie.data.image_sets import SETS, ImageFile, file_of, image_files
from outlie.data.locate import cache_dir, data_dir, fetch, obtain, recorded, verify
from outlie.errors import UserError

CONTENT = np.random.RandomState(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """What the server does next, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"/file": CONTENT}
        self.ranges = True
        self.cut_after: list[int] = []  # for each coming answer: bytes sent before the connection drops
        self.fail_with: list[int] = []  # for each coming request: status
        self.asked: list[str | None] = []  # Range headers
        self.url = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            if state.fail_with:
                self.send_error(state.fail_with.pop(0))
                return
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            stop = start + state.cut_after.pop(0) if state.cut_after else len(content)
            self.wfile.write(content[start:stop])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{httpd.server_address[1]}"
        yield state
        httpd.shutdown()
        thread.join()


def get(server: Server, target: Path, sha256: str = SHA256, tries: int = 4) -> str:
    return download(f"{server.url}/file", target, sha256, tries=tries, pause_s=0.01)


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def test_a_whole_file_arrives(server, tmp_path):
    target = tmp_path / "new" / "file"
    assert get(server, target) == SHA256
    assert target.read_bytes() == CONTENT
    assert not part_of(target).exists()


def test_a_file_cut_off_half_way_is_resumed(server, tmp_path):
    server.cut_after = [150_000]
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=150000-"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.cut_after = False, [150_000]
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_cut_off_every_time_keeps_the_part_and_the_next_command_resumes(server, tmp_path):
    target = tmp_path / "file"
    server.cut_after = [100_000, 50_000]
    with pytest.raises(UserError, match=r"150000 bytes are kept and will be resumed"):
        get(server, target, tries=2)
    assert not target.exists()
    assert part_of(target).stat().st_size == 150_000
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=150000-"


def test_a_complete_part_needs_no_more_bytes(server, tmp_path):
    part_of(tmp_path / "file").write_bytes(CONTENT)
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == ["bytes=300000-"]


@pytest.mark.parametrize("part", [CONTENT + b"more", b"other" * 100])
def test_a_part_of_something_else_is_given_up(server, tmp_path, part):
    part_of(tmp_path / "file").write_bytes(part)
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_wrong_checksum_is_not_kept(server, tmp_path):
    wrong = "0" * 64
    with pytest.raises(UserError, match=f"SHA-256 {SHA256}, expected {wrong}"):
        get(server, tmp_path / "file", wrong)
    assert not (tmp_path / "file").exists()
    assert not part_of(tmp_path / "file").exists()


def test_404_is_said_at_once(server, tmp_path):
    target = tmp_path / "gone.npz"
    with pytest.raises(UserError, match=r"HTTP 404") as error:
        download(f"{server.url}/gone.npz", target, tries=4, pause_s=0.01)
    assert len(server.asked) == 1
    assert f"{server.url}/gone.npz" in str(error.value)
    assert str(target) in str(error.value)


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.fail_with = [503, 429]
    get(server, tmp_path / "file")
    assert len(server.asked) == 3


def test_offline_names_url_target_and_outlie_data(tmp_path):
    with pytest.raises(UserError) as error:
        download("http://127.0.0.1:9/file", tmp_path / "file", tries=2, pause_s=0.01)
    assert all(word in str(error.value) for word in ("http://127.0.0.1:9/file", str(tmp_path / "file"), "OUTLIE_DATA"))


def test_several_at_once_download_once(server, tmp_path):
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: get(server, tmp_path / "file"), range(6)))
    assert found == [SHA256] * 6
    assert len(server.asked) == 1


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "a_file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*XDG_CACHE_HOME"):
        get(server, tmp_path / "a_file" / "file")


def test_quiet_when_stderr_is_no_terminal(server, tmp_path, capsys):
    get(server, tmp_path / "file")
    assert capsys.readouterr() == ("", "")


# ADBench: looked up, downloaded, recorded, verified


def npz(n: int = 60, d: int = 4) -> bytes:
    buffer = io.BytesIO()
    rng = np.random.RandomState(0)
    np.savez(buffer, X=rng.randn(n, d), y=(np.arange(n) % 6 == 0).astype(int))
    return buffer.getvalue()


@pytest.fixture
def mirror(server, empty_cache, monkeypatch) -> Server:
    monkeypatch.setenv("OUTLIE_ADBENCH_URL", server.url)
    server.files["/NLP_by_BERT/yelp.npz"] = npz()
    return server


def test_a_file_without_checksum_is_recorded_and_verified_ever_after(mirror):
    split = ADBench("yelp", "dte_semi_noleak").load(0)
    assert len(split.train) == 25
    assert len(mirror.asked) == 1
    path = cache_dir() / "adbench/NLP_by_BERT/yelp.npz"
    assert recorded() == {"NLP_by_BERT/yelp.npz": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert verify(one_file("yelp"), path)
    ADBench("yelp").load(0)
    assert len(mirror.asked) == 1
    path.write_bytes(npz(61))
    with pytest.raises(UserError, match=r"not the file it should be.*run data fetch yelp"):
        ADBench("yelp").load(0)
    fetch(one_file("yelp"))
    ADBench("yelp").load(0)


def test_a_changed_upstream_file_is_refused(mirror):
    path = obtain(one_file("yelp"))
    path.unlink()
    mirror.files["/NLP_by_BERT/yelp.npz"] = npz(61)
    with pytest.raises(UserError, match=r"expected"):
        obtain(one_file("yelp"))


def test_a_login_page_is_not_taken_for_data(mirror):
    mirror.files["/NLP_by_BERT/yelp.npz"] = b"<html>please log in</html>"
    with pytest.raises(UserError, match=r"not an npz file"):
        obtain(one_file("yelp"))
    assert recorded() == {}
    assert not (cache_dir() / "adbench/NLP_by_BERT/yelp.npz").exists()


def test_a_known_checksum_is_demanded(mirror):
    mirror.files["/Classical/38_thyroid.npz"] = npz()
    with pytest.raises(UserError, match=r"8de161b3f235b7647bb0b39a836d983ff61d67bf234edac461da2d71e889cb87"):
        obtain(one_file("thyroid"))


def copy_of(name: str, folder: Path, content: bytes) -> DataFile:
    file = one_file(name)
    path = folder / "adbench" / file.path
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return file


def test_truncated_and_wrong_files_under_outlie_data(adbench_dir, empty_cache, tmp_path, monkeypatch):
    content = (adbench_dir / one_file("wine").path).read_bytes()
    file = copy_of("wine", tmp_path, content[:-10])
    monkeypatch.setenv("OUTLIE_DATA", str(tmp_path))
    with pytest.raises(UserError, match=f"truncated: {len(content) - 10} bytes found, {len(content)} expected"):
        obtain(file)
    (tmp_path / "adbench" / file.path).write_bytes(content[:-1] + b"!")
    with pytest.raises(UserError, match=f"found, {file.sha256} expected; delete it"):
        obtain(file)
    (tmp_path / "adbench" / file.path).write_bytes(content)
    assert obtain(file) == tmp_path / "adbench" / file.path


def test_unreadable_outlie_data(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTLIE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"does not exist"):
        data_dir()
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("OUTLIE_DATA", str(tmp_path / "a_file"))
    with pytest.raises(UserError, match=r"is not a folder"):
        ADBench("thyroid").load(0)

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("OUTLIE_DATA", str(tmp_path))
    monkeypatch.setattr("os.scandir", refuse)  # root may read everything, so a chmod would not do
    with pytest.raises(UserError, match=r"cannot be read.*Permission denied.*unset it"):
        data_dir()


def test_outlie_data_comes_before_the_cache(empty_cache, tmp_path, monkeypatch):
    file = copy_of("yelp", empty_cache, npz(60))
    assert obtain(file) == empty_cache / "adbench" / file.path
    copy_of("yelp", tmp_path / "mine", npz(60))
    monkeypatch.setenv("OUTLIE_DATA", str(tmp_path / "mine"))
    assert obtain(file) == tmp_path / "mine" / "adbench" / file.path


# Image sets: several places, several mirrors, MD5 where that is what the publisher gives


def image_file(server: Server, **changes: object) -> ImageFile:
    file = ImageFile(
        name="kmnist",
        part="test_labels",
        paths=("kmnist/KMNIST/raw/file", "KMNIST/raw/file"),
        urls=(f"{server.url}/file",),
        md5=hashlib.md5(CONTENT).hexdigest(),
        sha256="",
        bytes=len(CONTENT),
        terms="",
    )
    return dataclasses.replace(file, **changes)


def test_an_md5_is_checked_where_no_better_sum_is_published(server, empty_cache):
    file = image_file(server)
    path = obtain(file)
    assert path == empty_cache / "kmnist/KMNIST/raw/file" and path.read_bytes() == CONTENT
    assert recorded() == {} and verify(file, path)
    assert len(server.asked) == 1 and obtain(file) == path and len(server.asked) == 1
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(UserError, match=rf"MD5 .* found, {file.md5} expected.*run data fetch image/kmnist/test_labels"):
        obtain(file)
    assert fetch(file).read_bytes() == CONTENT
    path.write_bytes(CONTENT[:-5])
    with pytest.raises(UserError, match=r"truncated: 299995 bytes found, 300000 expected"):
        obtain(file)


def test_a_wrong_md5_is_not_kept(server, empty_cache):
    wrong = "0" * 32
    with pytest.raises(UserError, match=f"has MD5 .*, expected {wrong}: not kept"):
        obtain(image_file(server, md5=wrong))
    assert not (empty_cache / "kmnist/KMNIST/raw/file").exists()


def test_the_next_mirror_is_asked(server, empty_cache):
    file = image_file(server, urls=(f"{server.url}/gone", f"{server.url}/file"))
    assert obtain(file).read_bytes() == CONTENT
    server.files["/wrong"] = b"<html>"
    (empty_cache / file.path).unlink()
    assert obtain(dataclasses.replace(file, urls=(f"{server.url}/wrong", f"{server.url}/file"))).is_file()
    with pytest.raises(UserError, match=r"HTTP 404.*OUTLIE_DATA"):
        obtain(image_file(server, urls=(f"{server.url}/gone", f"{server.url}/lost"), paths=("other",)))


def test_an_image_file_without_any_sum_is_recorded(server, empty_cache):
    file = image_file(server, md5="")
    obtain(file)
    assert recorded() == {file.path: SHA256}
    (empty_cache / file.path).write_bytes(CONTENT[::-1])
    with pytest.raises(UserError, match=r"not the file it should be: SHA-256"):
        obtain(file)


def test_a_mirror_of_ones_own_is_asked_instead(server, empty_cache, monkeypatch):
    monkeypatch.setenv("OUTLIE_IMAGES_URL", f"{server.url}/mirror/")
    server.files["/mirror/kmnist/KMNIST/raw/file"] = CONTENT
    assert obtain(image_file(server, urls=())).read_bytes() == CONTENT


def test_torchvisions_layout_is_found(server, empty_cache, tmp_path, monkeypatch):
    path = tmp_path / "mine/KMNIST/raw/file"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    monkeypatch.setenv("OUTLIE_DATA", str(tmp_path / "mine"))
    assert obtain(image_file(server)) == path
    assert server.asked == []


def test_what_is_not_on_the_web_says_where_to_put_it(empty_cache):
    message = (
        r"image/cifar10_part/train is not on the web: put cifar10/cifar10_train_10000.npz under .*made from cifar10"
    )
    with pytest.raises(UserError, match=message):
        fetch(file_of("cifar10_part", "train"))


def test_run_data_knows_image_sets(server, empty_cache, monkeypatch, capsys):
    monkeypatch.setenv("OUTLIE_IMAGES_URL", server.url)
    assert data(["list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {f"image/{name}" for name in SETS} <= set(lines)
    assert "3x?x?" in lines["image/dtd"] and "not here" in lines["image/dtd"]
    assert "made from cifar10" in lines["image/cifar10_part"] and "inside scikit-learn" in lines["image/digits"]
    server.files["/svhn/test_32x32.mat"] = b"wrong"
    with pytest.raises(UserError, match=r"has MD5 .*, expected eb5a983be6a315427106f1b164d9cef3"):
        data(["fetch", "image/svhn/test"])
    with pytest.raises(UserError, match=r"did you mean 'fashion_mnist'"):
        data(["fetch", "fashion_mnst"])
    with pytest.raises(UserError, match=r"unknown file of image/svhn 'tst' \(did you mean 'test'\?\)"):
        data(["fetch", "image/svhn/tst"])
    with pytest.raises(UserError, match=r"inside scikit-learn: nothing to fetch"):
        data(["fetch", "digits"])
    assert data(["verify", "kmnist"]) == 1
    assert "image/kmnist/train_images is not here: run data fetch image/kmnist/train_images" in capsys.readouterr().err


def test_the_real_sum_of_a_real_file(server, empty_cache, monkeypatch, capsys):
    root = Path(__file__).parents[3] / "shared/data"
    file = file_of("fashion_mnist", "test_labels")
    if not (root / file.path).is_file():
        pytest.skip("needs ../shared/data with fashion_mnist/")
    content = (root / file.path).read_bytes()
    assert (hashlib.md5(content).hexdigest(), len(content)) == (file.md5, file.bytes)
    monkeypatch.setenv("OUTLIE_IMAGES_URL", server.url)
    server.files[f"/{file.path}"] = content
    assert data(["fetch", "fashion_mnist/test_labels"]) == 0
    assert str(empty_cache / file.path) in capsys.readouterr().out
    assert data(["verify", "fashion_mnist/test_labels"]) == 0


def test_the_table_of_image_sets_is_well_formed():
    seen = set()
    for name, files in image_files().items():
        assert (name == "digits") == (not files)
        for file in files:
            assert file.path not in seen and not seen.add(file.path)
            assert file.urls or file.sha256
            assert len(file.md5) in (0, 32) and len(file.sha256) in (0, 64) and file.terms
            assert set(file.md5 + file.sha256) <= set("0123456789abcdef")
