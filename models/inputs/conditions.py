"""Conditions of samples -> the numbers that a conditional graph takes, one per part.

A tile has its image's condition; a window, that of the row it ends at, as the row's verdict is the window's. Samples
whose condition is missing or was not among the clean data cannot be judged: what is clean for one recipe says nothing
of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vaegis.models.blocks import Block
from vaegis.models.errors import Refusal
from vaegis.models.sources import Source
from vaegis.models.sources.conditions import FORMS, ConditionTable, read_conditions
from vaegis.models.sources.options import listed
from vaegis.models.spec import InputSpec, SeriesSpec

Ints = NDArray[np.int64]
MOST = 256  # conditions: each becomes an input of the networks


def declared_names(source: Source) -> tuple[str, ...]:
    """The conditions that a clean source declares, in their order; none if it declares none.

    Raises:
        Refusal: they cannot be read, there is only one, or so many that they are something else.
    """
    how = source.options.condition
    if how is None:
        return ()
    names = read_conditions(source, how).names
    if len(names) < 2:
        only = f"only the condition {names[0]!r}" if names else "no condition"
        raise Refusal(f"--condition {how} finds {only} in the clean data; a model tells at least two apart.")
    if len(names) > MOST:
        raise Refusal(
            f"--condition {how} finds {len(names)} different values ({listed(names, 3)}), more than the {MOST} "
            "conditions a model can have; name what holds a class or recipe."
        )
    return names


def of_source(source: Source, spec: InputSpec) -> ConditionTable | None:
    """The conditions of a source for a spec; None where the spec has none.

    Raises:
        Refusal: the spec wants them and the source's options name none, or the other way round.
    """
    how = source.options.condition
    if how is None:
        if spec.conditions:
            raise Refusal(
                f"The model was fitted with conditions ({listed(spec.conditions)}); say which each sample has, with "
                f"--condition {FORMS}."
            )
        return None
    if not spec.conditions:
        raise Refusal("The model was fitted without conditions; leave --condition out, or fit again with it.")
    table = read_conditions(source, how)
    if how.startswith("is:"):
        number_of(spec, table.names[0])
    return table


def number_of(spec: InputSpec, name: str) -> int:
    """The number that a graph takes for a condition.

    Raises:
        Refusal: the spec has no conditions, or not this one.
    """
    if not spec.conditions:
        raise Refusal(f"The model was fitted without conditions, so {name[:70]!r} means nothing to it; leave it out.")
    if name not in spec.conditions:
        raise Refusal(_unseen(spec, name))
    return spec.conditions.index(name)


def conditioned(blocks: Iterator[Block], spec: InputSpec, table: ConditionTable) -> Iterator[Block]:
    """Blocks of a source with the conditions of their parts."""
    # A window that covers a block's last row may end T - 1 rows after it.
    ahead = spec.window - 1 if isinstance(spec, SeriesSpec) else 0
    for block in blocks:
        items, index = block.items, block.index
        if ahead and block.place is not None and len(block):
            items = [items[0]] * (len(block) + ahead)
            index = np.arange(index[0], index[0] + len(items), dtype=np.int64)
        yield with_conditions(block, spec, table.names, table.find(items, index))


def declare(block: Block, spec: InputSpec, words: Sequence[str]) -> Block:
    """A request's block with a condition for each sample.

    Raises:
        Refusal: the spec has no conditions, or not one for each sample is given.
    """
    if not spec.conditions:
        raise Refusal('The model was fitted without conditions; leave "condition" out.')
    if len(words) != len(block):
        raise Refusal(f'"condition" has {len(words)} entries, and the data have {len(block)} samples.')
    names = list(dict.fromkeys(words))
    code = {name: i for i, name in enumerate(names)}
    return with_conditions(block, spec, names, np.array([code[w] for w in words], np.int32))


def with_conditions(block: Block, spec: InputSpec, names: Sequence[str], codes: NDArray[np.int32]) -> Block:
    """The block with the condition of each part; samples without a known one are left without parts.

    Args:
        names: what the codes mean.
        codes: of each sample, -1 = not given; of a series, of its rows and of those after them that a
            window may end at.
    """
    known = {name: i for i, name in enumerate(spec.conditions)}
    # One place more, so that code -1 is looked up there.
    numbers = np.array([*(known.get(name, -1) for name in names), -1], np.int64)
    if isinstance(spec, SeriesSpec) and block.place is not None:
        owner = block.place[:, 0] + spec.window - 1
    else:
        owner = np.repeat(np.arange(len(block)), block.count)
    numbers_of_parts = numbers[codes[owner]]
    good = numbers_of_parts >= 0
    if good.all():
        return replace(block, conditions=numbers_of_parts)
    there = np.flatnonzero(block.count > 0)
    mine = block.first[there]
    usable = there[good[mine]]
    first, count = np.zeros_like(block.first), np.zeros_like(block.count)
    first[usable] = (np.cumsum(good) - good)[block.first[usable]]
    count[usable] = block.count[usable]
    errors = dict(block.errors)
    for i, code in zip(there[~good[mine]].tolist(), codes[owner[mine[~good[mine]]]].tolist(), strict=True):
        errors[i] = _unseen(spec, names[code]) if code >= 0 else f"It has no condition; the model knows {_all(spec)}."
    return replace(
        block,
        parts=block.parts[good],
        first=first,
        count=count,
        errors=errors,
        place=block.place[good] if block.place is not None else None,
        conditions=numbers_of_parts[good],
    )


def fitted_numbers(spec: InputSpec, table: ConditionTable, items: Sequence[str], index: Ints) -> Ints:
    """(n,) the condition of each clean sample.

    Raises:
        Refusal: one has none.
    """
    codes = table.find(items, index)
    if (codes < 0).any():
        i = int(np.flatnonzero(codes < 0)[0])
        raise Refusal(f"Sample {index[i]} of {items[i]} has no condition; every clean sample needs one.")
    known = {name: i for i, name in enumerate(spec.conditions)}
    return np.array([known[name] for name in table.names], np.int64)[codes]


def _unseen(spec: InputSpec, name: str) -> str:
    return f"Condition {name[:70]!r} was not among the clean data; the model knows {_all(spec)}."


def _all(spec: InputSpec) -> str:
    return listed(spec.conditions, 20)
