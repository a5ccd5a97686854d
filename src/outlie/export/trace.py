"""One graph for every batch size, from two traces: what differs between batches of 11 and of 13 rows is the batch.

`torch.export` follows a symbolic batch size through the code, and any `len(x)`, chunk of rows or loop over chunks fixes
it. Here the score is traced as it runs, at two sizes; both traces must have the same steps, and a number n that
differs between them becomes a B + b. Every row is scored as if it came alone, so rows that are split in order to save
memory may as well stay together.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, has_proxy_slot, make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from outlie.errors import UserError

PAIRS = ((11, 13), (17, 19))  # rows of the two traces; the second where a number of the model is one of the first
EXAMPLE = max(PAIRS[-1])  # rows to trace with
SLICE = torch.ops.aten.slice.Tensor
LEAVING = (torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.tolist)  # a trace would keep the example's values
SPLITS = (torch.Tensor.split, torch.split)


class OneBatch(TorchFunctionMode):
    """While tracing: rows stay together, what does not depend on them is computed now, once, and is a constant.

    So are random draws: none depends on a row. Two functions that ONNX lacks are put in other words.
    """

    def __init__(self, size: int, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.sizes = size, sizes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(_follows(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)):
            return self._constant(func, args, kwargs)
        if func in LEAVING:
            raise UserError("a step of it is taken outside torch, in NumPy or Python")
        if func in SPLITS and _dim(args, kwargs) == 0 and isinstance(args[1], int) and len(args[0]) == self.size:
            return (args[0],)
        if func in (torch.searchsorted, torch.Tensor.kthvalue, torch.kthvalue):
            return (search_sorted if func is torch.searchsorted else kth_value)(*args, **kwargs)
        return func(*args, **kwargs)

    def _constant(self, func: Any, args: Any, kwargs: Any) -> Any:
        generator = kwargs.get("generator")
        with disable_proxy_modes_tracing():
            made = func(*args, **kwargs)
        if generator is not None or func.__name__.endswith("_"):  # a draw, or a change in place: once, not again
            return made
        tensors = [one for one in tree_leaves(made) if isinstance(one, Tensor)]
        long = any(n and n % size == 0 for one in tensors for n in one.shape for size in self.sizes)
        return func(*args, **kwargs) if long else made  # perhaps as long as the batch, which has to be followed


def traced(score: Callable[[Tensor], Any], example: Tensor) -> fx.GraphModule:
    """`score` as a graph of ATen operators that takes any number of rows.

    Args:
        score: (B, ...) rows -> a tensor or a tuple of tensors.
        example: (EXAMPLE, ...) rows, or more.

    Raises:
        UserError: the score leaves torch (NumPy, PyOD), or takes other steps for another number of rows.
    """
    if len(example) < EXAMPLE:
        raise ValueError(f"{len(example)} rows to trace with: {EXAMPLE} are needed")
    try:
        return _merged(score, example, PAIRS[0])
    except UserError:
        return _merged(score, example, PAIRS[1])


def _merged(score: Callable[[Tensor], Any], example: Tensor, sizes: tuple[int, int]) -> fx.GraphModule:
    small, large = (_trace(score, example[:size], size, sizes) for size in sizes)
    steps, others = list(small.graph.nodes), list(large.graph.nodes)
    if [(n.op, str(n.target)) for n in steps] != [(n.op, str(n.target)) for n in others]:
        raise UserError(
            f"the score takes {len(steps)} steps for {sizes[0]} rows and {len(others)} others for {sizes[1]}: it "
            "cannot be one graph"
        )
    if any(node.target is torch.ops.aten.nonzero.default for node in steps):
        raise UserError("which rows the score works on depends on their values (nonzero): it cannot be one graph")
    _same_constants(small, large)
    (x,) = (node for node in steps if node.op == "placeholder")
    with small.graph.inserting_after(x):
        batch = small.graph.call_function(torch.ops.aten.sym_size.int, (x, 0))
    last, made = batch, {}

    def size_of(a: int, b: int) -> fx.Node | int:
        nonlocal last
        if (a, b) not in made:
            node: fx.Node = batch
            for function, number in ((operator.mul, a), (operator.add, b)):
                if (function, number) not in ((operator.mul, 1), (operator.add, 0)):
                    with small.graph.inserting_after(last):
                        node = small.graph.call_function(function, (node, number))
                    last = node
            made[a, b] = node
        return made[a, b]

    def merged(one: Any, two: Any) -> Any:
        if isinstance(one, list | tuple):
            if not isinstance(two, list | tuple) or len(one) != len(two):
                raise UserError("the score takes other steps for another number of rows: it cannot be one graph")
            return type(one)(merged(*pair) for pair in zip(one, two))
        if isinstance(one, dict):
            return {key: merged(value, two[key]) for key, value in one.items()}
        if isinstance(one, fx.Node) or one == two or one is two or one != one:
            return one
        if isinstance(one, int) and isinstance(two, int) and not isinstance(one, bool):
            a, rest = divmod(two - one, sizes[1] - sizes[0])
            if rest == 0:
                return size_of(a, one - a * sizes[0])
        raise UserError(f"the score has a number that depends on the batch as {one} and {two}: it cannot be one graph")

    for node, other in zip(steps, others):
        if node.op == "call_function" and node.target is SLICE and _takes_all(node, other):
            node.replace_all_uses_with(node.args[0])  # pyright: ignore[reportArgumentType] (a slice is of a node)
            small.graph.erase_node(node)
            continue
        node.args = merged(node.args, other.args)
        node.kwargs = merged(node.kwargs, other.kwargs)
    small.graph.lint()
    small.recompile()
    return small


def _trace(score: Callable[[Tensor], Any], rows: Tensor, size: int, sizes: tuple[int, int]) -> fx.GraphModule:
    with torch.no_grad(), OneBatch(size, sizes):
        try:
            return make_fx(score, tracing_mode="real")(rows)
        except UserError:
            raise
        except Exception as error:
            said = " ".join(str(error).split())
            if "_local_scalar_dense" in said:  # of float(tensor), tensor.numpy() and `if tensor`
                said = "which step comes next depends on a value of the row"
            raise UserError(f"the score cannot be followed as a graph of tensors: {said[:200]}") from error


def _takes_all(node: Any, other: Any) -> bool:
    """Whether a slice along the batch takes every row at both sizes: the end of a chunk, beyond the last row."""
    if node.args[1:] != other.args[1:]:
        return False
    dim, start, end, step = (*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :])
    sizes = [one.args[0].meta["val"].shape[dim] for one in (node, other)]
    return sizes[0] != sizes[1] and not start and step == 1 and (end is None or end >= max(sizes))


def _same_constants(small: fx.GraphModule, large: fx.GraphModule) -> None:
    """UserError where a constant of the graph depends on the rows that were traced: a draw for each row, say."""
    for node in small.graph.nodes:
        if node.op == "get_attr":
            one, two = (_attribute(module, str(node.target)) for module in (small, large))
            if isinstance(one, Tensor) and one is not two and not torch.equal(one, two):
                raise UserError(
                    "a constant of the score depends on the rows (a random draw for each of them, say): it cannot be "
                    "one graph"
                )


def _attribute(module: nn.Module, name: str) -> Any:
    return operator.attrgetter(name)(module)


def _follows(tensor: Tensor) -> bool:
    """Whether a tensor depends on the rows: it has a place in the trace."""
    mode = get_proxy_mode()
    return mode is None or has_proxy_slot(tensor, mode.tracer)


def _dim(args: Any, kwargs: Any) -> int:
    return args[2] if len(args) > 2 else kwargs.get("dim", 0)


def search_sorted(ordered: Tensor, values: Tensor, *, right: bool = False) -> Tensor:
    """torch.searchsorted of (D, n) and (D, B) by halving steps; ONNX has no such operator; (D, B) int64."""
    n = ordered.shape[-1]
    place = torch.zeros_like(values, dtype=torch.int64)
    for step in (2**i for i in reversed(range(n.bit_length()))):
        reached = place + step
        there = ordered.gather(-1, reached.clamp(max=n) - 1)
        below = there <= values if right else there < values
        place = torch.where(below & (reached <= n), reached, place)
    return place


def kth_value(values: Tensor, k: int, dim: int = -1) -> tuple[Tensor, Tensor]:
    """torch.kthvalue by topk, which ONNX has."""
    smallest = values.topk(k, dim, largest=False)
    return torch.return_types.kthvalue((smallest.values.select(dim, -1), smallest.indices.select(dim, -1)))
