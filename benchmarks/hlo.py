"""Reads from the HLO text of a compiled program what a step costs: bytes sent by collectives, bytes moved in HBM."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16}
_LEAF = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")


class Leaf(NamedTuple):
    """One array of a shape: its size in bytes, and whether it is in HBM rather than in on-chip memory."""

    bytes: float
    hbm: bool


class Op(NamedTuple):
    """One HLO instruction."""

    name: str
    code: str
    leaves: list[Leaf]
    operands: list[str]
    attributes: str
    root: bool


def leaves(shape: str) -> list[Leaf]:
    """The arrays of a shape, ``f32[8,128]{1,0:T(8,128)S(1)}`` or a tuple; a layout with S(n) is not in HBM."""
    out = []
    for dtype, dims, layout in _LEAF.findall(shape):
        bits = re.search(r"\d+", dtype)
        width = WIDTHS.get(dtype) or (int(bits.group()) / 8 if bits else 0)
        size = math.prod(int(d) for d in dims.split(",") if d)
        out.append(Leaf(width * size, "S(" not in layout))
    return out


def _closing(text: str, start: int) -> int:
    """The index of the bracket that closes the one at ``start``."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"an open bracket in {text[start : start + 80]!r}")


def parse(hlo: str) -> tuple[dict[str, dict[str, Op]], str]:
    """The computations by name, each with its instructions by name and in order; and the name of the entry."""
    computations: dict[str, dict[str, Op]] = {}
    current, entry = None, ""
    for line in hlo.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = computations.setdefault(head.group(2), {})
            entry = head.group(2) if head.group(1) else entry
            continue
        match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
        if not match or current is None:
            continue
        rest = line[match.end() :]
        end = _closing(rest, 0) + 1 if rest[0] == "(" else rest.index(" ")
        code = re.match(r"\s*([\w\-]+)\(", rest[end:])
        open_at = end + code.end() - 1
        close_at = _closing(rest, open_at)
        operands = re.findall(r"%([\w.\-]+)", rest[open_at:close_at])
        name, attributes = match.group(2), rest[close_at + 1 :]
        if code.group(1) in ("parameter", "constant"):
            operands = [rest[open_at + 1 : close_at]]
        current[name] = Op(
            name, code.group(1), leaves(rest[:end]), operands, attributes, bool(match.group(1))
        )
    return computations, entry


def trip_count(op: Op, computations: dict[str, dict[str, Op]]) -> int:
    """The number of iterations of a while loop: as the compiler notes it, else the bound in ``i < constant``."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', op.attributes)
    if known:
        return int(known.group(1))
    condition = computations[re.search(r"condition=%?([\w.\-]+)", op.attributes).group(1)]
    bounds = [int(o.operands[0]) for o in condition.values() if o.code == "constant"]
    root = next(o for o in condition.values() if o.root)
    if len(bounds) != 1 or "direction=LT" not in root.attributes:
        raise ValueError(f"the trip count of {op.name} cannot be read from its condition")
    return bounds[0]


def executed(
    computations: dict[str, dict[str, Op]], entry: str, *, fusions: bool, times: int = 1, unroll: bool = True
) -> Iterator[tuple[Op, int, dict[str, Op]]]:
    """Each instruction with the number of times that a step executes it, and its computation.

    Args:
      computations, entry: from `parse`.
      fusions: whether to include the instructions inside fusions.
      times: how often the entry is executed.
      unroll: whether loop bodies count for every iteration, or once, as in XLA's own analysis.
    """
    for op in computations[entry].values():
        yield op, times, computations[entry]
        iterations = trip_count(op, computations) if op.code == "while" and unroll else 1
        names = []
        if op.code == "while":
            names = re.findall(r"body=%?([\w.\-]+)", op.attributes)
        elif op.code in ("call", "conditional", "async-start"):
            names = re.findall(r"(?:to_apply|calls|\w+_computation)=%?([\w.\-]+)", op.attributes)
            listed = re.search(r"branch_computations=\{([^}]*)\}", op.attributes)
            names += re.findall(r"[\w.\-]+", listed.group(1)) if listed else []
        elif op.code == "fusion" and fusions:
            names = re.findall(r"calls=%?([\w.\-]+)", op.attributes)
        for name in names:
            yield from executed(computations, name, fusions=fusions, times=times * iterations, unroll=unroll)


def group_size(attributes: str, devices: int) -> int:
    """The number of chips in one group of a collective; all of them where no groups are given."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh.group(1)))
        axes = re.findall(
            r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2)
        )  # 'a':(2)4 is a part of axis a, of size 4
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes)
    if iota:
        return int(iota.group(1))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    return len(listed.group(1).split(",")) if listed else devices


def collective_bytes(hlo: str, devices: int) -> dict[str, tuple[float, int]]:
    """Bytes that one chip sends in a step, and how many operations send them, by kind of collective.

    The convention is a ring of the group's n chips: all-reduce sends 2(n-1)/n of the array, all-gather and
    reduce-scatter (n-1)/n of the whole (gathered, not yet scattered) array, all-to-all (n-1)/n of a chip's
    array, collective-permute the array. Fusions that hold an all-reduce and its slice ("all-reduce-scatter")
    are reduce-scatters.
    """
    computations, entry = parse(hlo)
    scatters = {id(ops) for name, ops in computations.items() if "all-reduce-scatter" in name}
    # An asynchronous collective starts in one fusion; the fusions that it overlaps with continue and end it, also
    # inside of loops. They repeat the instruction, of which only the first is counted.
    continuations = {id(ops) for name, ops in computations.items() if _continues_collective(name, ops)}
    totals: dict[str, tuple[float, int]] = {}
    for op, times, computation in executed(computations, entry, fusions=True):
        start = op.code.endswith("-start")
        kind = op.code.removesuffix("-start")
        if kind not in KINDS or id(computation) in continuations:
            continue
        arrays = [leaf.bytes for leaf in op.leaves]
        if start and kind == "collective-permute":
            arrays = arrays[1:2]  # (from, to, context, context)
        elif start and kind != "all-reduce":
            arrays = arrays[len(arrays) // 2 :]  # (from..., to...)
        size, n = sum(arrays), group_size(op.attributes, devices)
        if id(computation) in scatters:
            kind = "reduce-scatter"
        elif kind == "reduce-scatter":
            size *= n  # the result is one chip's part
        fraction = 1.0 if kind == "collective-permute" else (n - 1) / n
        sent = size * fraction * (2 if kind == "all-reduce" else 1)
        bytes_, count = totals.get(kind, (0.0, 0))
        totals[kind] = (bytes_ + sent * times, count + times)
    return totals


def _continues_collective(name: str, ops: dict[str, Op]) -> bool:
    return name.startswith("async_collective_fusion") or any(
        "AsyncCollectiveDone" in o.attributes for o in ops.values()
    )


FREE_OPS = (
    "parameter constant tuple get-tuple-element bitcast while call conditional after-all partition-id replica-id"
).split()


def _moved_by_fusion(op: Op, computation: dict[str, Op], body: dict[str, Op]) -> float:
    """HBM traffic of a fusion, in bytes. Of a parameter that is only sliced or updated, the slice or update counts."""

    def source(name):
        while body[name].code == "bitcast":
            name = body[name].operands[0]
        return name

    uses: dict[str, list[tuple[Op, int]]] = {}
    for inner in body.values():
        if inner.code != "bitcast":
            for index, name in enumerate(inner.operands):
                if name in body:
                    uses.setdefault(source(name), []).append((inner, index))
    total = 0.0
    for inner in body.values():
        if inner.code != "parameter":
            continue
        outer = computation[op.operands[int(inner.operands[0])]]
        whole = sum(leaf.bytes for leaf in outer.leaves if leaf.hbm)
        part = 0.0
        for user, index in uses.get(inner.name, []):
            if user.code in ("dynamic-slice", "slice", "gather") and index == 0:
                part += sum(leaf.bytes for leaf in user.leaves)
            elif not (user.code == "dynamic-update-slice" and index == 0):
                part = math.inf
        total += min(whole, part)
    root = body[source(next(o.name for o in body.values() if o.root))]
    results = [body[source(name)] for name in root.operands] if root.code == "tuple" else [root]
    for leaf, result in zip(op.leaves, results, strict=False):
        update = result.code == "dynamic-update-slice"
        size = sum(x.bytes for x in body[result.operands[1]].leaves) if update else leaf.bytes
        total += min(size, leaf.bytes) if leaf.hbm else 0.0
    return total


def hbm_bytes(hlo: str) -> float:
    """Bytes that a step reads from and writes to HBM: the operands and results of all instructions and fusions."""
    computations, entry = parse(hlo)
    total = 0.0
    for op, times, computation in executed(computations, entry, fusions=False):
        if op.code in FREE_OPS or op.code.endswith("-done"):
            continue
        in_hbm = sum(leaf.bytes for leaf in op.leaves if leaf.hbm)
        read = sum(x.bytes for o in op.operands if o in computation for x in computation[o].leaves if x.hbm)
        if op.code in ("copy-start", "slice-start"):  # (to, from, context) and ((from), to, context)
            moved = min(leaf.bytes for leaf in op.leaves[:2]) * sum(leaf.hbm for leaf in op.leaves[:2])
        elif op.code == "fusion":
            body = computations[re.search(r"calls=%?([\w.\-]+)", op.attributes).group(1)]
            moved = _moved_by_fusion(op, computation, body)
        elif op.code in ("dynamic-slice", "slice", "gather"):
            moved = 2 * in_hbm
        elif op.code == "dynamic-update-slice":
            moved = 2 * min(in_hbm, sum(leaf.bytes for leaf in computation[op.operands[1]].leaves))
        else:
            moved = in_hbm + read
        total += moved * times
    return total
