"""Checkpoints: files written by hand, torch and NumPy, layouts of others, and files that are broken or do not fit."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from outlie.backbones.mlp import MLP
from outlie.backbones.resnet import ResNet
from outlie.backbones.weights import load_weights, match, plain_names, pytorch_cifar_names
from outlie.data.split import Rows, Split
from outlie.errors import UserError

STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([1.0, -2.0])}


def split_of(classes: int = 3, channels: int = 3) -> Split:
    generator = torch.Generator().manual_seed(classes)
    x = torch.randint(256, (2 * classes, channels, 8, 8), generator=generator, dtype=torch.uint8)
    mean, scale = x.double().mean((0, 2, 3))[:, None, None], x.double().std((0, 2, 3))[:, None, None]
    rows = Rows(x, torch.arange(len(x)), None, torch.arange(len(x)) % classes)
    return Split("p", rows, {}, None, mean, scale, "hash")


def small(seed: int = 0, classes: int = 3, **options) -> ResNet:
    torch.manual_seed(seed)
    network = ResNet(depth=10, width=2, **options)
    network.setup(split_of(classes))
    return network.eval()


def own_state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in network.state_dict().items() if name not in ("mean", "scale")}


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], names: dict[str, str]) -> None:
    """The format by its specification: header length, JSON, data one after another."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "dtype": names[name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name


# --- reading


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "tar", "bin"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.backbone.", "model.module."])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "net", "ema", "backbone"])
def test_wrappers_are_taken_off(tmp_path, suffix, prefix, key):
    state = {prefix + name: tensor for name, tensor in STATE.items()}
    content = state if key is None else {key: state, "acc": 91.2, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / f"w.{suffix}")
    assert_same(load_weights(tmp_path / f"w.{suffix}"), STATE)


def test_a_prefix_that_only_some_names_have_is_part_of_them():
    state = {"model.fc.weight": STATE["fc.weight"], "temperature": torch.ones(1)}
    assert plain_names(state) == state
    with_standardisation = {"model.fc.weight": STATE["fc.weight"], "mean": torch.ones(1), "scale": torch.ones(1)}
    assert set(plain_names(with_standardisation)) == {"fc.weight", "mean", "scale"}


def test_safetensors_of_every_type(tmp_path):
    kinds = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1",
             "BOOL": "?"}  # fmt: skip
    arrays = {kind: (np.arange(6).reshape(2, 3) % 5).astype(code) for kind, code in kinds.items()}
    arrays |= {"scalar": np.array(7.5, "f4"), "empty": np.zeros((0, 4), "f4"), "B": np.array([0x3FC0, 0xC000], "u2")}
    write_safetensors(tmp_path / "w.safetensors", arrays,
                      {k: k for k in kinds} | {"scalar": "F32", "empty": "F32", "B": "BF16"})  # fmt: skip
    found = load_weights(tmp_path / "w.safetensors")
    assert torch.equal(found.pop("B"), torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    assert found.keys() == arrays.keys() - {"B"}
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.numpy(), arrays[name])
        assert tensor.numpy().dtype == arrays[name].dtype


def test_npz(tmp_path):
    np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in STATE.items()})
    assert_same(load_weights(tmp_path / "w.npz"), STATE)


# --- what is broken


def test_truncated_files(tmp_path):
    torch.save(STATE, tmp_path / "w.pt")
    np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in STATE.items()})
    arrays = {name: tensor.numpy() for name, tensor in STATE.items()}
    write_safetensors(tmp_path / "w.safetensors", arrays, dict.fromkeys(arrays, "F32"))
    for name in ("w.pt", "w.npz", "w.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for size in (0, 5, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(UserError, match=f"{name} .*(truncated|no checkpoint)|cannot read .*{name}"):
                load_weights(tmp_path / name)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]},
        {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        [1],
    ],
)
def test_a_safetensors_header_that_lies(tmp_path, entry):
    text = json.dumps({"w": entry}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(UserError, match="cannot read"):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\xff\xfe", b"{"])
def test_a_safetensors_header_that_is_none(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)
    with pytest.raises(UserError, match="cannot read"):
        load_weights(tmp_path / "w.safetensors")


class Runs:
    """Unpickling it would write a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_nothing_is_unpickled(tmp_path):
    torch.save({"state_dict": STATE, "config": Runs(str(tmp_path / "run"))}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"holds more than tensors.*torch\.save"):
        load_weights(tmp_path / "w.pt")
    np.savez(tmp_path / "w.npz", w=np.array([Runs(str(tmp_path / "run"))], dtype=object))
    with pytest.raises(UserError, match="cannot read"):
        load_weights(tmp_path / "w.npz")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"state_dict": {"a": 1}}, torch.ones(3)])
def test_a_file_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds no weights: expected names and tensors"):
        load_weights(tmp_path / "w.pt")


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"no weights .*w\.pt; set backbone\.weights"):
        load_weights(tmp_path / "w.pt")
    with pytest.raises(UserError, match="no weights"):
        load_weights(tmp_path)


# --- filling a network


def test_match_is_all_or_nothing():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {name: t.clone() for name, t in module.state_dict().items()}
    wrong = before | {"0.weight": torch.zeros(2, 4), "9.weight": torch.zeros(1)}
    del wrong["1.running_var"]
    expected = (
        r"x.pt is a checkpoint of another architecture: 1 missing: 1.running_var; 1 unexpected: 9.weight; "
        r"1 of another shape: 0.weight \(2, 4\) for \(2, 3\)"
    )
    with pytest.raises(UserError, match=expected):
        match(wrong, module, "x.pt")
    assert_same(module.state_dict(), before)
    right = {name: torch.full_like(t, 2) for name, t in before.items()}
    del right["1.num_batches_tracked"]  # files from before it was there
    match(right, module, "x.pt")
    assert float(module[0].weight.detach().mean()) == 2 and int(module[1].num_batches_tracked) == 0


def test_a_checkpoint_of_another_depth_or_width(tmp_path):
    torch.save(own_state(small()), tmp_path / "w.pt")
    for options in ({"depth": 18, "width": 2}, {"depth": 10, "width": 3}):
        with pytest.raises(UserError, match=r"w\.pt is a checkpoint of another architecture: \d+ "):
            ResNet(**options, weights=tmp_path / "w.pt").setup(split_of())
    with pytest.raises(UserError, match="another architecture"):
        MLP(weights=tmp_path / "w.pt").setup(split_of())


def test_pytorch_cifars_checkpoint(tmp_path):
    first = small(seed=1)
    state = own_state(first)
    theirs = {
        "module." + name.replace("fc.", "linear.").replace("downsample", "shortcut"): t for name, t in state.items()
    }
    assert "module.layer2.0.shortcut.1.running_mean" in theirs and "module.linear.bias" in theirs
    torch.save({"net": theirs, "acc": 95.1, "epoch": 199}, tmp_path / "ckpt.pth")
    network = small(seed=2, weights=tmp_path / "ckpt.pth")
    assert not network.trained
    assert_same(own_state(network), state)
    assert pytorch_cifar_names(state) is state


def test_a_runs_checkpoint_brings_its_standardisation(tmp_path):
    first, x = small(seed=1), split_of(classes=3).train.x
    first.mean, first.scale = first.mean + 5, first.scale * 2  # as of other training rows
    torch.save({"backbone": first.state_dict(), "detector": {}, "classes": 3}, tmp_path / "model.ckpt")
    network = small(seed=2, weights=tmp_path / "model.ckpt")
    assert torch.equal(network(x).logits, first(x).logits)
    with pytest.raises(UserError, match="weights for 3 channels, the data have 1"):
        ResNet(depth=10, width=2, weights=tmp_path / "model.ckpt").setup(split_of(channels=1))


def test_another_number_of_classes_needs_fine_tuning(tmp_path):
    first = small(seed=1, classes=5)
    torch.save(own_state(first), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt: weights for 5 classes, the data have 3; backbone\.finetune=true"):
        small(weights=tmp_path / "w.pt")
    network = small(seed=2, weights=tmp_path / "w.pt", finetune=True)
    assert network.trained and network.fc.weight.shape == (3, 16)
    same, other = own_state(network), own_state(first)
    assert [name for name in same if not torch.equal(same[name], other[name])] == ["fc.weight", "fc.bias"]
    kept = small(seed=2, classes=5, weights=tmp_path / "w.pt", finetune=True)
    assert_same(own_state(kept), other)


def test_weights_without_a_head_need_fine_tuning(tmp_path):
    state = {name: t for name, t in own_state(small(seed=1)).items() if not name.startswith("fc.")}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"2 missing: fc\.weight, fc\.bias"):
        small(weights=tmp_path / "w.pt")
    network = small(weights=tmp_path / "w.pt", finetune=True)
    assert torch.equal(network.conv1.weight, state["conv1.weight"])
