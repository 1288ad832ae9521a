"""Conditions: the class or recipe that each sample was made as, by (item, index)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaegis.models.errors import Refusal
from vaegis.models.sources.annotations import Readers, read_annotations
from vaegis.models.sources.images import ImageFolder
from vaegis.models.sources.opening import ArraySource, Source
from vaegis.models.sources.options import listed, natural_key, span
from vaegis.models.sources.tables import TableFiles, numeric, open_table

FORMS = "FILE.csv, column:NAME, key:NAME, folders or is:NAME"
Codes = NDArray[np.int32]


@dataclass(frozen=True)
class ItemConditions:
    """Conditions within one item."""

    codes: Codes  # (n,) into the table's names; -1 = not given
    start: int = 0  # index of the first; the others follow without a gap
    index: NDArray[np.int64] | None = None  # (n,) ascending, where they do not
    every: bool = False  # one code that holds for every index

    def find(self, index: NDArray[np.int64]) -> Codes:
        """Codes of samples by index, -1 where there is none."""
        if self.every:
            return np.full(len(index), self.codes[0], np.int32)
        if self.index is None:
            at, known = index - self.start, (index >= self.start) & (index < self.start + len(self.codes))
        else:
            at = np.minimum(np.searchsorted(self.index, index), len(self.index) - 1)
            known = self.index[at] == index
        return np.where(known, self.codes[np.where(known, at, 0)], -1).astype(np.int32)


@dataclass(frozen=True)
class ConditionTable:
    """The conditions of a source."""

    names: tuple[str, ...]  # in natural order
    items: Mapping[str, ItemConditions]
    default: int = -1  # code of an item that is not listed

    def find(self, items: Sequence[str | None], index: NDArray[np.int64]) -> Codes:
        """Codes (n,) into `names` of samples given by item and index; -1 where nothing is said."""
        by_sample = np.full(len(index), self.default, np.int32)
        low = 0
        for item, run in groupby(items):
            high = low + sum(1 for _ in run)
            of_item = self.items.get(item) if item is not None else None
            if of_item is not None and len(of_item.codes):
                by_sample[low:high] = of_item.find(index[low:high])
            low = high
        return by_sample


def read_conditions(source: Source, how: str) -> ConditionTable:
    """The conditions of a source.

    `how` is a csv file (item,index,condition; without index one holds for the whole item), `column:NAME`, `key:NAME`,
    `folders` (the folder an image lies in) or `is:NAME` (one for all). Numbers are taken as written.

    Raises:
        Refusal: conditions cannot be had that way from this source.
    """
    if how.startswith("is:"):
        name = how.removeprefix("is:").strip()
        if not name:
            raise Refusal("--condition is: names no condition; write is:NAME.")
        return ConditionTable((name,), {}, default=0)
    readers = Readers(_from_folders, _from_column, _from_key, _from_file)
    return read_annotations(source, how, "--condition", "condition", FORMS, readers)


def _from_folders(source: ImageFolder) -> ConditionTable:
    first, _ = source.span
    words = [PurePosixPath(name).parent.as_posix() for name in source.names()]
    for name, word in zip(source.names(), words, strict=True):
        if word == ".":
            raise Refusal(f"--condition folders: {name} lies in no sub-folder; put it into that of its condition.")
    names = ordered(words)
    code = {name: i for i, name in enumerate(names)}
    items = {
        name: ItemConditions(np.array([code[word]], np.int32), first + i)
        for i, (name, word) in enumerate(zip(source.names(), words, strict=True))
    }
    return ConditionTable(names, items)


def _from_column(source: TableFiles, column: str) -> ConditionTable:
    words: dict[str, int] = {}
    by_item: dict[str, tuple[int, Codes]] = {}
    for name in source.names():
        try:
            table = source.open(name)
            table.column(column, "--condition")
            codes = [_coded(batch.column(0), words) for batch in table.batches([], words=[column])]
        except Refusal:
            # One broken table of many is its own samples' trouble: they have no condition, and reading them says why.
            if len(source.files) == 1:
                raise
            continue
        whole = np.concatenate(codes) if codes else np.empty(0, np.int32)
        first, last = span(source.options.rows, len(whole))
        by_item[name] = first, whole[first:last]
    return _table(words, {name: ItemConditions(codes, first) for name, (first, codes) in by_item.items()})


def _from_key(source: ArraySource, key: str) -> ConditionTable:
    values = source.vector(key)
    if values.ndim != 1:
        raise Refusal(f"--condition key:{key}: the array has shape {values.shape}; give one value per sample.")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    first, last = source.span
    words: dict[str, int] = {}
    codes = _coded(pa.array(values[first:last]), words)
    return _table(words, {source.names()[0]: ItemConditions(codes, first)})


def _from_file(source: Source, path: Path) -> ConditionTable:
    table = open_table(path.name, path)
    texts = [table.column("item", "--condition"), table.column("condition", "--condition")]
    names = ["index"] if "index" in table.schema.names else []
    if names and not numeric(table.schema.field("index").type):
        raise Refusal(f"Column 'index' of {path.name} must hold whole numbers, counting from 0.")
    batches = [batch for batch in table.batches(names, words=texts) if batch.num_rows]
    if not batches:
        raise Refusal(f"--condition {path.name} is empty: it holds no row.")
    content = pa.Table.from_batches(batches).combine_chunks()
    words: dict[str, int] = {}
    codes = _coded(content["condition"], words)
    item = np.array([str(v) for v in content["item"].to_pylist()], object)
    index = np.full(len(item), -1, np.int64)
    if names:
        index = content["index"].cast(pa.float64()).fill_null(-1.0).to_numpy().astype(np.int64)
    items: dict[str, ItemConditions] = {}
    order = np.lexsort((index, item))
    for places in np.split(order, np.flatnonzero(item[order][1:] != item[order][:-1]) + 1):
        name, here = str(item[places[0]]), index[places]
        if len(places) > 1 and ((np.diff(here) == 0).any() or here[0] == -1):
            raise Refusal(f"--condition {path.name} names a sample of {name!r} more than once; give one row a sample.")
        items[name] = ItemConditions(codes[places], 0, here, every=here[0] == -1)
    if not set(source.names()) & set(items):
        raise Refusal(
            f"No item of --condition {path.name} ({listed(sorted(items), 3)}) is in the source, which holds "
            f"{listed(source.names(), 3)}."
        )
    return _table(words, items)


def ordered(words: Sequence[str]) -> tuple[str, ...]:
    """Each word once, in natural order."""
    return tuple(sorted(set(words), key=natural_key))


def _coded(values: pa.Array | pa.ChunkedArray, words: dict[str, int]) -> Codes:
    """Codes of a column's words, in the order in which they were first met; -1 where there is none."""
    floats = pa.types.is_floating(values.type)
    texts = values.dictionary_encode()
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    known = []
    for value in texts.dictionary.to_pylist():
        word = "" if value is None else f"{value:g}" if floats else str(value).strip()
        known.append(words.setdefault(word, len(words)) if word and word != "nan" else -1)
    # The last place is that of a null, whose index becomes -1.
    codes: Codes = np.array([*known, -1], np.int32)[texts.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    return codes


def _table(words: dict[str, int], items: Mapping[str, ItemConditions]) -> ConditionTable:
    """With codes in the natural order of the names that are really there."""
    used = {int(c) for of_item in items.values() for c in np.unique(of_item.codes)} - {-1}
    there = [word for word, code in words.items() if code in used]
    names = ordered(there)
    turn = np.full(len(words) + 1, -1, np.int32)
    for i, name in enumerate(names):
        turn[words[name]] = i
    turned = {
        n: ItemConditions(turn[of_item.codes], of_item.start, of_item.index, of_item.every)
        for n, of_item in items.items()
    }
    return ConditionTable(names, turned)
