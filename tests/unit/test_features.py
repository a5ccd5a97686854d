"""Cached views against the network's own output; entries that are damaged, contested, killed, refused by the disk."""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from outlie import features
from outlie.data.split import Rows
from outlie.detectors.base import Views
from outlie.errors import UserError
from outlie.stages import ROWS_AT_ONCE
from outlie.trainer import Options

CPU = Options(accelerator="cpu", progress="off")
NET = """
import os, sys, time
from pathlib import Path
import torch
from torch import nn
from outlie import features
from outlie.data.split import Rows
from outlie.detectors.base import Views
from outlie.trainer import Options

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        with open("passes.txt", "a") as file:
            file.write(f"{os.getpid()}\\n")
        if sys.argv[1] == "killed" and (x == 5000).any():
            os.kill(os.getpid(), 9)
        time.sleep(float(sys.argv[2]))
        return Views(features=x, logits=self.head(x))

torch.manual_seed(0)
rows = Rows(torch.arange(6000.0).reshape(2000, 3), torch.arange(2000))
views = features.views(Net(), rows, Options(accelerator="cpu"), Path("cache"), Path("."))
assert torch.equal(views.features, rows.x)
"""


class Net(nn.Module):
    """features = relu(norm(x / 255 @ W)), logits by the head; `_passes` holds the size of every batch."""

    def __init__(self, scale: float = 255.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.scale, self._passes = nn.Linear(12, 5), nn.Linear(5, 3), scale, []
        self.register_buffer("shift", torch.zeros(1), persistent=False)
        self.norm = nn.BatchNorm1d(5)  # has a 0-dimensional int64 in the state

    def forward(self, x: Tensor) -> Views:
        self._passes.append(len(x))
        hidden = self.norm(self.body(x.flatten(1).to(self.body.weight.dtype) / self.scale + self.shift)).relu()
        return Views(x=x, features=hidden, logits=self.head(hidden), maps=x.float() if x.ndim == 4 else None)


class Lazy:
    """Rows that are decoded when indexed, as image files are."""

    def __init__(self, x: Tensor, name: str = "a") -> None:
        self.x, self.name, self.shape, self.asked = x, name, x.shape, []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> Tensor:
        self.asked.append(len(rows))
        return self.x[rows]

    def fingerprint(self) -> str:
        return self.name


def images(n: int = 2500) -> Rows:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, 2, 2), dtype=torch.uint8, generator=generator)
    return Rows(x, torch.arange(n), y=torch.arange(n) % 3)


def truth(net: Net, rows: Rows) -> Views:
    """One batch, by hand; the pass is not counted."""
    net.eval()
    with torch.no_grad():
        views = net(torch.as_tensor(rows.x if isinstance(rows.x, Tensor) else rows.x.x))
    net._passes.clear()
    return views


@pytest.fixture(autouse=True)
def by_256(monkeypatch):
    """As many images at once on every machine; with a GPU there would be more."""
    tables = features.rows_at_once((4,))
    monkeypatch.setattr(features, "rows_at_once", lambda shape: 256 if len(shape) == 3 else tables)


@pytest.fixture
def get(tmp_path):
    """`get(net, rows)`: the views through tmp_path/cache, and how many batches went through the network."""

    def call(net: Net, rows: Rows, options: Options = CPU, **more) -> tuple[Views, int]:
        before = len(net._passes)
        views = features.views(net, rows, options, tmp_path / "cache", tmp_path, **more)
        return views, len(net._passes) - before

    return call


def entries(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache").glob("*") if path.is_dir())


def test_a_hit_is_the_miss_bit_for_bit(get, tmp_path):
    net, rows = Net(), images()
    wanted = truth(net, rows)
    first, passes = get(net, rows)
    assert passes == -(-2500 // 256)  # images go by 256
    torch.testing.assert_close(first.features, wanted.features, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(first.logits, wanted.logits, rtol=1e-6, atol=1e-6)
    assert first.x is None
    assert first.maps is None
    assert first.y is rows.y
    second, passes = get(net, rows)
    assert passes == 0
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.logits, second.logits)
    assert second.features.dtype == torch.float32
    manifest = json.loads((entries(tmp_path)[0] / "manifest.json").read_text())
    assert features.key(net, rows, CPU.precision) in manifest["entry"]
    assert not second.features.is_inference()  # a detector may train on it
    assert get(net, rows, wanted=("maps",))[0].maps.shape == (2500, 3, 2, 2)


def test_rows_of_a_table_and_views_that_are_not_there(get):
    net, rows = Net(), Rows(torch.randn(ROWS_AT_ONCE + 1, 12, dtype=torch.float64), torch.arange(ROWS_AT_ONCE + 1))
    for expected in (2, 0):
        views, passes = get(net, rows, wanted=("features", "maps"))
        assert passes == expected
        assert views.maps is None
        assert views.logits is None
        torch.testing.assert_close(views.features, truth(net, rows).features)
    empty, _ = get(net, Rows(torch.empty(0, 12), torch.arange(0)))
    assert empty.features.shape == (0, 5)


def test_the_key_is_what_the_views_depend_on():
    net, rows = Net(), images(20)
    known = features.key(net, rows, "32-true")
    assert known == features.key(Net(), images(20), "32-true")
    assert len(known) == 64
    net.train()
    assert known == features.key(net, Rows(rows.x.clone(), rows.index + 1, rows.index, None), "32-true")
    others = {known, features.key(net, rows, "bf16-mixed"), features.key(Net(scale=256.0), rows, "32-true")}
    with torch.no_grad():
        for name in ("body.weight", "norm.running_mean", "norm.num_batches_tracked", "shift"):
            changed = Net()
            tensor = dict(changed.named_parameters()) | dict(changed.named_buffers())
            tensor[name].view(-1)[0] += 1
            others.add(features.key(changed, rows, "32-true"))
    changed = Net()
    changed.norm.eps *= 2
    others.add(features.key(changed, rows, "32-true"))
    changed = Net()
    changed.transform_id = "resize 224"
    others.add(features.key(changed, rows, "32-true"))
    pixel = rows.x.clone()
    pixel[7, 1, 1, 0] ^= 1
    for x in (pixel, rows.x.flip(0), rows.x[1:], rows.x.reshape(20, 12), rows.x.view(torch.int8)):
        others.add(features.key(net, Rows(x, rows.index), "32-true"))
    assert len(others) == 14
    lazy = [features.key(net, Rows(Lazy(rows.x, name), rows.index), "32-true") for name in "aab"]
    assert lazy[0] == lazy[1] != lazy[2]
    strided = torch.stack([rows.x, rows.x], 1)[:, 0]
    assert features.key(net, Rows(strided, rows.index), "32-true") == known


def test_the_key_follows_the_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "from torch import nn\nclass Own(nn.Linear):\n    def forward(self, x):\n        return x {} 1\n"
    keys = []
    for sign in "++-":
        (tmp_path / "own_network.py").write_text(code.format(sign))
        sys.modules.pop("own_network", None)
        torch.manual_seed(0)
        keys.append(features.key(__import__("own_network").Own(2, 2), images(3), "32-true"))
    sys.modules.pop("own_network")
    assert keys[0] == keys[1] != keys[2]


def cut_short(entry: Path) -> None:
    with open(entry / "features.bin", "r+b") as file:
        file.truncate(100)


def flip_a_byte(entry: Path) -> None:
    content = bytearray((entry / "logits.bin").read_bytes())
    content[1000] ^= 1
    (entry / "logits.bin").write_bytes(content)


def tell_another_type(entry: Path) -> None:
    path = entry / "manifest.json"
    path.write_text(path.read_text().replace("<f4", "<i4"))


def take_anothers_place(entry: Path) -> None:
    manifest = json.loads((entry / "manifest.json").read_text())
    (entry / "manifest.json").write_text(json.dumps(manifest | {"entry": "f" * 64}))


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        flip_a_byte,
        tell_another_type,
        take_anothers_place,
        lambda entry: (entry / "manifest.json").unlink(),
        lambda entry: (entry / "features.bin").unlink(),
        lambda entry: (entry / "manifest.json").write_text('{"entry": '),
        lambda entry: (entry / "manifest.json").write_text("[1, 2]"),
        lambda entry: (entry / "manifest.json").write_bytes(b"\xff\xfe"),
        lambda entry: (shutil.rmtree(entry), entry.write_text("a file")),
    ],
)
def test_what_is_damaged_is_built_again(damage, get, tmp_path):
    net, rows = Net(), images(300)
    first, _ = get(net, rows)
    kept = first.features.clone(), first.logits.clone()
    damage(entries(tmp_path)[0])
    views, passes = get(net, rows)
    assert passes == 2
    assert torch.equal(views.features, kept[0])
    assert torch.equal(views.logits, kept[1])


def test_writing_to_a_view_changes_no_file(get, tmp_path):
    net, rows = Net(), images(300)
    get(net, rows)
    kept = (entries(tmp_path)[0] / "features.bin").read_bytes()
    views, _ = get(net, rows)
    views.features.zero_()
    assert (entries(tmp_path)[0] / "features.bin").read_bytes() == kept
    again, passes = get(net, rows)
    assert passes == 0
    assert again.features.abs().sum() > 0


def test_rows_decoded_when_asked_for(get):
    net, whole = Net(), images(600)
    lazy = Lazy(whole.x)
    views, passes = get(net, Rows(lazy, whole.index))
    assert passes == 3
    assert lazy.asked == [256, 256, 88]  # never all at once
    torch.testing.assert_close(views.features, truth(net, whole).features)
    _, passes = get(net, Rows(lazy, whole.index))
    assert passes == 0
    assert len(lazy.asked) == 3


def test_rows_are_decoded_while_the_network_works(get):
    decoding, working, met = threading.Event(), threading.Event(), []

    class Slow(Lazy):
        def __getitem__(self, rows: Tensor) -> Tensor:
            if 512 <= rows[0] < 1280:  # at the ends there may be nothing to work on
                decoding.set()
                working.wait(5)
                decoding.clear()
            return super().__getitem__(rows)

    def works(*_) -> None:
        if len(net._passes) < 3:  # after that there may be nothing to decode
            working.set()
            met.append(decoding.wait(5))
            working.clear()

    net, whole = Net(), images(6 * 256)
    net.register_forward_pre_hook(works)
    get(net, Rows(Slow(whole.x), whole.index))
    assert sum(met) >= 2  # one after the other: never


def test_an_error_while_decoding_is_the_users(get, tmp_path):
    class Broken(Lazy):
        def __getitem__(self, rows: Tensor) -> Tensor:
            if 300 in rows:
                raise UserError("image 300 is cut short")
            return super().__getitem__(rows)

    whole = images(600)
    with pytest.raises(UserError, match="image 300"):
        get(Net(), Rows(Broken(whole.x), whole.index))
    assert not entries(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_output_that_is_not_finite_is_refused(value, get, tmp_path):
    net, rows = Net(), Rows(torch.ones(1500, 12), torch.arange(1500))
    rows.x[1100:1107, 3] = value
    net.body.weight.data.abs_()
    with pytest.raises(UserError, match=r"features .* in 7 of the rows 1024 to 1499"):
        get(net, rows)
    assert not entries(tmp_path)


def test_a_network_that_loses_rows_is_refused(get):
    net = Net()
    net.register_forward_hook(lambda module, inputs, views: views[1:])
    with pytest.raises(UserError, match="99 rows of features from 100"):
        get(net, images(100))


def test_the_network_leaves_as_it_came(get):
    net, rows = Net(), images(300)
    net.train()
    doubles, _ = get(net, rows, Options(accelerator="cpu", precision="64-true"))
    assert doubles.features.dtype == torch.float64
    assert net.body.weight.dtype == torch.float32
    assert net.training
    halves, _ = get(net, rows, Options(accelerator="cpu", precision="bf16-mixed"))
    assert halves.logits.dtype == torch.float32
    torch.testing.assert_close(halves.logits.double(), doubles.logits, rtol=0.05, atol=0.05)
    assert not torch.equal(halves.logits.double(), doubles.logits)


def test_a_cache_that_cannot_be_written(get, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    net, rows = Net(), images(600)
    with caplog.at_level("INFO", "outlie"):
        views, passes = get(net, rows)
    assert passes == 3
    assert "finding " in caplog.text
    torch.testing.assert_close(views.logits, truth(net, rows).logits)
    assert not views.logits.is_inference()


@pytest.mark.parametrize("bytes_left", [0, 3_000, 300 * 20 + 7, 600 * 20])  # features: 20 bytes a row, 600 rows
def test_a_full_disk(bytes_left, get, tmp_path, caplog):
    net, rows = Net(), images(601)
    wanted = truth(net, rows)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        with caplog.at_level("INFO", "outlie"):
            views, passes = get(net, rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert passes == 3  # what was computed is not computed twice
    assert caplog.text.count("finding ") == 1
    torch.testing.assert_close(views.features, wanted.features)
    torch.testing.assert_close(views.logits, wanted.logits)
    assert not entries(tmp_path)
    assert get(net, rows)[1] == 3  # now there is room
    assert get(net, rows)[1] == 0


def test_a_manifest_or_a_rename_that_fails(get, tmp_path, monkeypatch, caplog):
    net, rows = Net(), images(300)
    wanted = truth(net, rows)

    def refuse(*_):
        raise PermissionError(13, "no")

    for name in ("write_text", "rename"):
        with monkeypatch.context() as patch, caplog.at_level("INFO", "outlie"):
            patch.setattr(Path, name, refuse)
            views, _ = get(net, rows)
        assert "finding " in caplog.text
        torch.testing.assert_close(views.features, wanted.features)
        assert not entries(tmp_path)
        caplog.clear()


def start(tmp_path: Path, how: str, seconds: float) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(NET)
    command = [sys.executable, "script.py", how, str(seconds)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=tmp_path, env=env, text=True, stderr=subprocess.PIPE)


def test_of_two_processes_at_once_one_computes(tmp_path):
    both = [start(tmp_path, "well", 2.0) for _ in range(2)]
    said = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(set((tmp_path / "passes.txt").read_text().split())) == 1
    assert len((tmp_path / "passes.txt").read_text().split()) == 2  # its two batches


def test_a_killed_process_leaves_neither_lock_nor_half_an_entry(tmp_path):
    killed = start(tmp_path, "killed", 0)
    killed.communicate(timeout=200)
    assert killed.returncode == -9
    assert [path.suffix for path in entries(tmp_path)] == [".partial"]
    after = start(tmp_path, "well", 0)
    _, said = after.communicate(timeout=200)
    assert after.returncode == 0, said
    assert [path.suffix for path in entries(tmp_path)] == [""]
    assert len((tmp_path / "passes.txt").read_text().split()) == 4


def test_who_waits_says_so(tmp_path, caplog, monkeypatch):
    entry = tmp_path / "cache" / "e"
    answers = iter([features.Timeout("x"), features.Timeout("x"), None])

    class Contested:
        def __init__(self, path):
            self.asked = []

        def acquire(self, timeout):
            self.asked.append(timeout)
            if answer := next(answers):
                raise answer

        def release(self):
            assert self.asked == [0, 60, 60]

    monkeypatch.setattr(features, "FileLock", Contested)
    with caplog.at_level("INFO", "outlie"), features.held(entry) as writable:
        assert writable
    assert caplog.text.count("waiting ") == 1


def test_size_and_prune(get, tmp_path):
    cache = tmp_path / "cache"
    assert features.size_of(cache) == (0, 0)
    features.prune(cache, 0)
    nets = [Net(scale) for scale in (1.0, 2.0, 3.0)]
    rows = images(300)
    for net in nets:
        get(net, rows)
    count, total = features.size_of(cache)
    assert count == 3
    assert total > 3 * 300 * (5 + 3) * 4
    assert total == sum(path.stat().st_size for entry in entries(tmp_path) for path in entry.iterdir())
    stamps = dict.fromkeys(entries(tmp_path), 1000000000.0)
    for entry, stamp in stamps.items():
        os.utime(entry / "manifest.json", (stamp, stamp))
    get(nets[0], rows)  # a hit: used now
    features.prune(cache, total)
    assert features.size_of(cache)[0] == 3
    features.prune(cache, total // 2)
    assert features.size_of(cache)[0] == 1
    assert get(nets[0], rows)[1] == 0
    with features.held(entries(tmp_path)[0]):  # somebody works on it
        features.prune(cache, 0)
    assert features.size_of(cache)[0] == 1
    features.prune(cache, 0)
    assert features.size_of(cache) == (0, 0)
