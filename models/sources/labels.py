"""Labels: 0 = clean, 1 = anomalous, and optionally the class of the anomaly, for (item, index)."""

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
from vaegis.models.sources.options import listed, span
from vaegis.models.sources.tables import TableFiles, numeric, open_table
from vaegis.models.spec import Kind

CLEAN_FOLDERS = ("good", "ok", "normal")
_CLEAN_WORDS = {"0", "false", "good", "ok", "normal", "clean", "0.0"}
EVERY = -1  # stands for every index of an item


@dataclass(frozen=True)
class ItemLabels:
    """Labels within one item, by ascending index; one label of index `EVERY` holds throughout."""

    index: NDArray[np.int64]  # (n,)
    label: NDArray[np.int8]  # (n,) 0 or 1
    classes: Sequence[str | None] | None  # (n,)


@dataclass(frozen=True)
class LabelTable:
    """Labels of a source."""

    items: Mapping[str, ItemLabels]

    def __len__(self) -> int:
        return sum(len(labels.index) for labels in self.items.values())

    def find(self, items: Sequence[str | None], index: NDArray[np.int64]) -> tuple[NDArray[np.int8], list[str | None]]:
        """Labels (n,) of samples given by item and index, -1 where there is none, and their classes."""
        label = np.full(len(index), -1, np.int8)
        classes: list[str | None] = [None] * len(index)
        low = 0
        for item, run in groupby(items):
            here = np.arange(low, low + sum(1 for _ in run))
            low += len(here)
            of_item = self.items.get(item) if item is not None else None
            if of_item is None:
                continue
            if of_item.index[0] == EVERY:
                at = np.zeros(len(here), np.int64)
            else:
                at = np.minimum(np.searchsorted(of_item.index, index[here]), len(of_item.index) - 1)
                known = of_item.index[at] == index[here]
                here, at = here[known], at[known]
            label[here] = of_item.label[at]
            if of_item.classes is not None:
                for i, k in zip(here.tolist(), at.tolist(), strict=True):
                    classes[i] = of_item.classes[k]
        return label, classes


def read_labels(source: Source, kind: Kind, how: str) -> LabelTable:
    """The labels of a source read as `kind`.

    `how` is a csv file (item,index,label[,class]; without index a label holds for the whole item), `column:NAME`,
    `key:NAME` or `folders`. Any number but 0, and any word but good, ok, normal, clean and false, is an anomaly; the
    word is then its class.

    Raises:
        Refusal: labels cannot be had that way from this source, or are incomplete.
    """
    readers = Readers(_from_folders if kind == "image" else None, _from_column, _from_key, _from_file)
    return read_annotations(
        source, how, "--labels", "class (good = clean)", "a csv file, column:NAME, key:NAME or folders", readers
    )


def _from_folders(source: ImageFolder) -> LabelTable:
    items = {}
    first, _ = source.span
    for i, name in enumerate(source.names()):
        parents = PurePosixPath(name).parts[:-1]
        if not parents:
            raise Refusal(
                f"--labels folders: {name} lies in no sub-folder; put it into good/ or into its defect's folder."
            )
        clean = any(part.lower() in CLEAN_FOLDERS for part in parents)
        items[name] = ItemLabels(
            np.array([first + i], np.int64), np.array([not clean], np.int8), [None if clean else parents[-1]]
        )
    return LabelTable(items)


def _from_column(source: TableFiles, column: str) -> LabelTable:
    items = {}
    for name in source.names():
        table = source.open(name)
        table.column(column, "--labels")
        pieces = [batch.column(0) for batch in table.batches([column])]
        values = pa.chunked_array(pieces, pieces[0].type) if pieces else pa.chunked_array([], pa.float64())
        first, last = span(source.options.rows, len(values))
        label, classes = _judged(values[first:last], f"column {column!r} of {name}", first)
        items[name] = ItemLabels(np.arange(first, last, dtype=np.int64), label, classes)
    return LabelTable({name: labels for name, labels in items.items() if len(labels.index)})


def _from_key(source: ArraySource, key: str) -> LabelTable:
    values = source.vector(key)
    first, last = source.span
    values = values[first:last]
    if values.ndim > 1:
        # One label per row of each window: a window is anomalous if any of its rows is.
        values = np.any((values != 0).reshape(len(values), -1), axis=1)
    label, classes = _judged(pa.chunked_array([pa.array(values)]), f"array {key!r} of {source.path.name}", first)
    labels = ItemLabels(np.arange(first, last, dtype=np.int64), label, classes)
    return LabelTable({source.names()[0]: labels})


def _from_file(source: Source, path: Path) -> LabelTable:
    table = open_table(path.name, path)
    words = [table.column("item", "--labels"), *(["class"] if "class" in table.schema.names else [])]
    names = [table.column("label", "--labels"), *(["index"] if "index" in table.schema.names else [])]
    batches = [batch for batch in table.batches(names, words=words) if batch.num_rows]
    if not batches:
        raise Refusal(f"--labels {path.name} is empty: it holds no row.")
    content = pa.Table.from_batches(batches)
    label, classes = _judged(content["label"], f"column 'label' of {path.name}", 0)
    if "class" in words:
        classes = [None if v in (None, "") else str(v) for v in content["class"].to_pylist()]
    item = np.array([str(v) for v in content["item"].to_pylist()], object)
    if "index" in names:
        if not numeric(table.schema.field("index").type):
            raise Refusal(f"Column 'index' of {path.name} must hold whole numbers, counting from 0.")
        index = content["index"].cast(pa.float64()).fill_null(float(EVERY)).to_numpy().astype(np.int64)
    else:
        index = np.full(len(item), EVERY, np.int64)
    items: dict[str, ItemLabels] = {}
    order = np.lexsort((index, item))
    cuts = np.flatnonzero(item[order][1:] != item[order][:-1]) + 1
    for places in np.split(order, cuts):
        name = str(item[places[0]])
        here = index[places]
        if len(places) > 1 and (np.diff(here) == 0).any() or (len(places) > 1 and here[0] == EVERY):
            raise Refusal(f"--labels {path.name} labels a sample of {name!r} more than once; give one row per sample.")
        items[name] = ItemLabels(here, label[places], [classes[i] for i in places] if classes is not None else None)
    known = set(source.names())
    if not known & set(items):
        raise Refusal(
            f"No item of --labels {path.name} ({listed(sorted(items), 3)}) is in the source, which holds "
            f"{listed(source.names(), 3)}."
        )
    return LabelTable(items)


def _judged(values: pa.ChunkedArray, title: str, first: int) -> tuple[NDArray[np.int8], Sequence[str | None] | None]:
    """Labels and, where they are words, classes."""
    if values.null_count:
        at = values.is_null().index(True).as_py() + first
        raise Refusal(f"Row {at} of {title} has no label; give 0 or 1.")
    if numeric(values.type):
        numbers = values.cast(pa.float64(), safe=False).to_numpy()
        if not np.isfinite(numbers).all():
            at = int(np.flatnonzero(~np.isfinite(numbers))[0]) + first
            raise Refusal(f"Row {at} of {title} is {numbers[at - first]}, which is no label; give 0 or 1.")
        return (numbers != 0).astype(np.int8), None
    words = [str(v).strip() for v in values.cast(pa.string()).to_pylist()]
    if "" in words:
        raise Refusal(f"Row {words.index('') + first} of {title} has no label; give 0 or 1.")
    label = np.array([word.lower() not in _CLEAN_WORDS for word in words], np.int8)
    return label, [word if bad else None for word, bad in zip(words, label, strict=True)]
