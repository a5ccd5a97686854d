"""Checkpoints of ours and of others as name -> tensor; nothing is unpickled, and nothing is loaded in part.

A file may be .safetensors, .npz or what torch.save wrote; names of wrappers around the network are taken off.
"""

import json
import math
import pickle
import re
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from outlie.errors import UserError

# entries that hold the weights; the last two are those of our own model.ckpt and weights.ckpt
INNER = ("state_dict", "model_state_dict", "model", "net", "ema", "backbone", "detector")
WRAPPERS = ("module.", "model.", "backbone.")  # DistributedDataParallel, Lightning, and the like
STANDARDISATION = ("mean", "scale")  # buffers of our own, outside the network
SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def load_weights(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of the network in a checkpoint; UserError if it is missing, broken or holds none."""
    if not path.is_file():
        raise UserError(f"no weights {path}; set backbone.weights to a file")
    try:
        match path.suffix:
            case ".safetensors":
                content = read_safetensors(path)
            case ".npz":
                with np.load(path, allow_pickle=False) as file:
                    content = {name: torch.from_numpy(file[name]) for name in file.files}
            case _:
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, or is no checkpoint: it is not unpickled, as that would run its code; "
            "save the state dict alone, torch.save(model.state_dict(), ...)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, BadZipFile) as error:
        raise UserError(f"cannot read {path} ({type(error).__name__}): truncated or not a checkpoint") from error
    return plain_names(unwrapped(content, path))


def unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """The innermost mapping of names to tensors: of {"state_dict": ...}, {"net": ..., "acc": ...} and the like."""
    while isinstance(content, dict):
        inner = next((content[key] for key in INNER if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} holds no weights: expected names and tensors, or these below {', '.join(INNER)}")
    return {str(name): tensor for name, tensor in content.items()}


def plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the wrappers that all of them carry."""
    for _ in range(2 * len(WRAPPERS)):
        names = [name for name in state if name not in STANDARDISATION]
        common = next((w for w in WRAPPERS if names and all(name.startswith(w) for name in names)), None)
        if common is None:
            break
        state = {name.removeprefix(common): tensor for name, tensor in state.items()}
    return state


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """8 bytes header length, JSON header of dtypes, shapes and offsets, raw little-endian data; bounds are checked."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or start > len(raw):
        raise ValueError("header beyond the end of the file")
    header = json.loads(raw[8:start])
    data, state = torch.frombuffer(bytearray(raw[start:]) or bytearray(1), dtype=torch.uint8), {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (first, last) = SAFETENSORS[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not 0 <= first <= last <= len(raw) - start or last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: {entry} in {len(raw) - start} bytes")
        state[name] = data[first:last].clone().view(dtype).reshape(shape)
    return state


def match(state: dict[str, Tensor], module: nn.Module, source: str) -> None:
    """Load all of `state` into all of `module`, its standardisation apart; never a part of it.

    Args:
        state: name -> tensor.
        module: network to fill.
        source: where the weights are from, for the message.

    Raises:
        UserError: names or shapes differ.
    """
    ours = {name: tensor for name, tensor in module.state_dict().items() if name not in STANDARDISATION}
    # files from before PyTorch 0.4.1 lack these counters, which nothing reads where momentum is set
    state = {name: tensor for name, tensor in ours.items() if name.endswith("num_batches_tracked")} | state
    different = [
        f"{name} {tuple(state[name].shape)} for {tuple(ours[name].shape)}"
        for name in ours
        if name in state and state[name].shape != ours[name].shape
    ]
    kinds = {
        "missing": [name for name in ours if name not in state],
        "unexpected": [name for name in state if name not in ours],
        "of another shape": different,
    }
    found = [f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in kinds.items() if names]
    if found:
        raise UserError(f"{source} is a checkpoint of another architecture: {'; '.join(found)}")
    module.load_state_dict(state, strict=False)


def pytorch_cifar_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """kuangliu/pytorch-cifar's `linear` and `shortcut` as torchvision's `fc` and `downsample`."""
    if "linear.weight" not in state:
        return state
    return {name.replace("linear.", "fc.").replace(".shortcut.", ".downsample."): t for name, t in state.items()}


NPZ_BLOCK = {
    "LayerNorm_0/scale": "norm1.weight", "LayerNorm_0/bias": "norm1.bias",
    "LayerNorm_2/scale": "norm2.weight", "LayerNorm_2/bias": "norm2.bias",
    "MultiHeadDotProductAttention_1/out/kernel": "attn.proj.weight",
    "MultiHeadDotProductAttention_1/out/bias": "attn.proj.bias",
    "MlpBlock_3/Dense_0/kernel": "mlp.fc1.weight", "MlpBlock_3/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_3/Dense_1/kernel": "mlp.fc2.weight", "MlpBlock_3/Dense_1/bias": "mlp.fc2.bias",
}  # fmt: skip
NPZ_TOP = {
    "cls": "cls_token", "Transformer/posembed_input/pos_embedding": "pos_embed",
    "embedding/kernel": "patch_embed.proj.weight", "embedding/bias": "patch_embed.proj.bias",
    "Transformer/encoder_norm/scale": "norm.weight", "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight", "head/bias": "head.bias",
    "pre_logits/kernel": "pre_logits.fc.weight", "pre_logits/bias": "pre_logits.fc.bias",
}  # fmt: skip


def vit_npz_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Google's ViT weights as timm's: inputs before outputs become outputs before inputs, q, k and v one matrix.

    A name that Google's files do not have is kept as it is, so that `match` tells of it.
    """
    if "embedding/kernel" not in state:
        return state
    ours: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}  # block's name + kind -> part -> tensor
    for name, tensor in state.items():
        found = re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)", name)
        block, inner = (f"blocks.{found[1]}.", found[2]) if found else ("", name)
        if part := re.fullmatch(r"MultiHeadDotProductAttention_1/(query|key|value)/(kernel|bias)", inner):
            kind = {"kernel": "weight", "bias": "bias"}[part[2]]
            # (D, heads, d) -> (heads d, D), (heads, d) -> (heads d)
            tensor = tensor.flatten(1).T if kind == "weight" else tensor.flatten()
            attention.setdefault(f"{block}attn.qkv.{kind}", {})[part[1]] = tensor
            continue
        if inner.endswith("out/kernel"):
            tensor = tensor.flatten(0, 1).T  # (heads, d, D) -> (D, heads d)
        elif inner == "embedding/kernel":
            tensor = tensor.permute(3, 2, 0, 1)  # (h, w, C, D) -> (D, C, h, w)
        elif inner.endswith("/kernel"):
            tensor = tensor.T
        ours[block + (NPZ_BLOCK if found else NPZ_TOP).get(inner, inner)] = tensor
    for name, parts in attention.items():
        ours[name] = torch.cat([parts[p] for p in ("query", "key", "value") if p in parts])
    return ours
