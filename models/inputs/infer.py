"""What shape of input suits the clean data: the spec, and notes on what was decided without being asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low

import numpy as np
from numpy.typing import NDArray

from vaegis.models.errors import Refusal
from vaegis.models.inputs.conditions import declared_names
from vaegis.models.inputs.images import read_roi, roi_digest
from vaegis.models.inputs.options import InputOptions
from vaegis.models.inputs.rows import RowSpec, Wanted, array_columns
from vaegis.models.inputs.stream import holds_windows, read_image, row_items
from vaegis.models.inputs.timeline import Rhythm
from vaegis.models.pixels import DRAFT, Form, Unreadable, probe
from vaegis.models.sources import ArraySource, ImageFolder, Source, TableFiles
from vaegis.models.sources.images import grouping
from vaegis.models.sources.layouts import refuse_whole_set
from vaegis.models.sources.options import listed
from vaegis.models.sources.tables import roles
from vaegis.models.spec import INVARIANCES, ImageSpec, InputSpec, SeriesSpec, VectorSpec

LEAST, MOST = 16, 512  # sides of an image that a graph takes
TILE, OVERLAP = 256, 32
SCANNED = 2000  # image headers read, evenly spread over a folder
MOST_CHANNELS = 16


def infer_spec(source: Source, options: InputOptions) -> tuple[InputSpec, list[str]]:
    """The spec of a model of these data, and sentences that tell the user what it means.

    Reads image headers, or every row once.

    Raises:
        Refusal: an option that does not apply, sizes that no graph takes, no readable sample, no numeric column.
    """
    _check_options(source, options)
    conditions = declared_names(source)
    if source.kind == "image":
        assert not isinstance(source, TableFiles)
        if isinstance(source, ImageFolder):
            refuse_whole_set(source)
        image, notes = _image_spec(source, options)
        return replace(image, conditions=conditions), notes
    assert not isinstance(source, ImageFolder)
    row, notes = _row_spec(source, options)
    return replace(row, conditions=conditions), notes


def _check_options(source: Source, options: InputOptions) -> None:
    kind = source.kind
    image = {"--size": options.size, "--tile": options.tile, "--overlap": options.overlap, "--roi": options.roi}
    series = {"--window": options.window, "--stride": options.stride if options.stride != 1 else None}
    given = [] if kind == "image" else [name for name, value in image.items() if value is not None]
    given += [] if kind == "series" else [name for name, value in series.items() if value is not None]
    given += ["--missing allow"] if kind == "image" and options.missing == "allow" else []
    if given:
        what = {"image": "images", "series": "series", "vector": "vectors"}[kind]
        raise Refusal(
            f"{listed(given)} does not apply to {what}, which is what {source.path.name} holds; leave it out."
        )
    known = INVARIANCES[kind]
    if wrong := [name for name in options.invariances if name not in known]:
        raise Refusal(f"--invariant {listed(wrong)} is not known for {kind} data; it may be {listed(known)}.")
    if options.stride < 1:
        raise Refusal(f"--stride {options.stride} is no step; give 1 or more rows.")
    if options.window is not None and options.window < 2:
        raise Refusal(f"--window {options.window} is too short; give 2 or more rows.")


def _image_spec(source: ImageFolder | ArraySource, options: InputOptions) -> tuple[ImageSpec, list[str]]:
    notes: list[str] = list(source.notes)
    forms = _scan(source) if isinstance(source, ImageFolder) else [_array_form(source)]
    channels = max(form.channels for form in forms)
    if len({form.channels for form in forms}) > 1:
        notes.append("Some images are grey and some are colour: all are read as colour.")
    depth = max(form.depth for form in forms)
    if len({form.depth for form in forms}) > 1:
        notes.append("Some images have 8 bits and some 16: all are read as 16 bits.")
    height, width, fit, tile, overlap = _grid([(form.height, form.width) for form in forms], options, notes)
    mask = read_roi(options.roi) if options.roi is not None else None
    if mask is not None and fit == "exact" and not tile and mask.shape != (height, width):
        raise Refusal(
            f"The region-of-interest mask is {mask.shape[0]}x{mask.shape[1]} and the images are "
            f"{height}x{width}; draw it "
            "on one of the images."
        )
    by = source.options.calibrate_by
    if by is not None and isinstance(source, ImageFolder):
        grouping(by, "--calibrate-by")
    return (
        ImageSpec(
            height=height,
            width=width,
            channels=channels,
            depth=depth,
            fit="resize" if fit == "resize" else "exact",
            tile=tile,
            overlap=overlap,
            roi=roi_digest(mask) if mask is not None else None,
            invariances=options.invariances,
            calibrate_by=by,
            draft=fit == "resize" and any(_drafted(form, height, width) for form in forms),
        ),
        notes,
    )


def _drafted(form: Form, height: int, width: int) -> bool:
    """Whether a file is so much larger than the graph's input that half of its size is more than enough."""
    return form.jpeg and form.height >= 2 * DRAFT * height and form.width >= 2 * DRAFT * width


def _scan(source: ImageFolder) -> list[Form]:
    names = source.names()
    chosen = sorted(set(np.linspace(0, len(names) - 1, min(SCANNED, len(names)), dtype=int).tolist()))
    forms, failed = [], []
    for i in chosen:
        try:
            forms.append(probe(read_image(source.place(names[i]))))
        except Unreadable as error:
            failed.append(f"{names[i]}: {error}")
    if not forms:
        raise Refusal(f"No image of {source.path.name} can be read. {'; '.join(failed[:3])}. Give readable images.")
    return forms


def _array_form(source: ArraySource) -> Form:
    shape = source.header.shape
    channels = shape[3] if len(shape) == 4 else 1
    if channels > MOST_CHANNELS:
        first = " It looks as if channels came first: use x.transpose(0, 2, 3, 1)." if shape[1] <= 4 else ""
        raise Refusal(
            f"{source.path.name} holds images of {channels} channels (shape {shape}), and at most {MOST_CHANNELS} are "
            f"taken.{first}"
        )
    # Of other types than uint16, 8 bits are read: see `levels`.
    return Form(shape[1], shape[2], channels, 16 if source.header.dtype == np.uint16 else 8)


def _grid(sizes: Sequence[tuple[int, int]], options: InputOptions, notes: list[str]) -> tuple[int, int, str, bool, int]:
    """(height, width, fit, tile, overlap)."""
    differ = len(set(sizes))
    least = (min(h for h, _ in sizes), min(w for _, w in sizes))
    middle = (median_low(h for h, _ in sizes), median_low(w for _, w in sizes))
    if options.size is not None and options.tile is not None:
        raise Refusal("--size and --tile exclude each other: images are either resized whole or cut into tiles.")
    if options.overlap is not None and options.tile is None and options.size is not None:
        raise Refusal("--overlap goes with --tile; leave it out with --size.")
    if options.size is not None:
        height, width = options.size
        _check_side("--size", height, width)
        return height, width, "resize", False, 0
    if options.tile is not None:
        _check_side("--tile", options.tile, options.tile)
        if min(least) < options.tile:
            raise Refusal(
                f"--tile {options.tile} is larger than the smallest image, which is {least[0]}x{least[1]}; give "
                "a smaller tile."
            )
        return options.tile, options.tile, "exact", True, _overlap(options.overlap, options.tile, options.tile // 8)
    if max(middle) > MOST or options.overlap is not None:
        height, width = min(TILE, least[0]), min(TILE, least[1])
        if min(height, width) < LEAST:
            raise Refusal(
                f"The smallest image is {least[0]}x{least[1]}, too small to be cut into tiles; leave it out, or resize "
                f"all images with --size {min(MOST, middle[0])}x{min(MOST, middle[1])}."
            )
        overlap = _overlap(options.overlap, min(height, width), min(OVERLAP, min(height, width) // 2))
        notes.append(
            f"The images are {middle[0]}x{middle[1]}{', their median' if differ > 1 else ''}: they are cut into "
            "tiles of "
            f"{height}x{width} that overlap by {overlap} (--tile and --overlap change that, --size resizes instead)."
        )
        return height, width, "exact", True, overlap
    if min(middle) < LEAST:
        raise Refusal(
            f"The images are {middle[0]}x{middle[1]} pixels, and {LEAST}x{LEAST} is the least a model takes; "
            "enlarge them "
            f"with --size {max(LEAST, middle[0])}x{max(LEAST, middle[1])}."
        )
    if differ > 1:
        notes.append(f"Image sizes differ ({differ} sizes): all are resized to {middle[0]}x{middle[1]}, their median.")
        return *middle, "resize", False, 0
    return *middle, "exact", False, 0


def _overlap(given: int | None, tile: int, default: int) -> int:
    overlap = default if given is None else given
    if not 0 <= overlap < tile:
        raise Refusal(f"--overlap {overlap} must be 0 or more and less than the tile's side, {tile}.")
    return overlap


def _check_side(option: str, height: int, width: int) -> None:
    if not (LEAST <= height <= MOST and LEAST <= width <= MOST):
        raise Refusal(f"{option} {height}x{width} is out of range: each side must be {LEAST} to {MOST} pixels.")


def _row_spec(source: ArraySource | TableFiles, options: InputOptions) -> tuple[RowSpec, list[str]]:
    notes: list[str] = list(source.notes)
    stamp = None
    if isinstance(source, ArraySource):
        columns = array_columns(source)
        if holds_windows(source) and source.options.kind is None and min(source.header.shape[1:]) >= LEAST:
            notes.append(
                f"{source.name} of shape {source.header.shape} is read as windows of {source.header.shape[1]} rows and "
                f"{len(columns)} columns; if it holds pictures, say --kind image."
            )
    else:
        table = source.open(_first_readable(source))
        columns, stamp, notes_on_columns = (role := roles(table, source.options)).features, role.timestamp, role.notes
        notes += notes_on_columns
    rhythm = Rhythm([])
    lengths, constant = _survey(source, columns, stamp if source.kind == "series" else None, rhythm)
    notes += rhythm.notes()
    if not sum(lengths):
        raise Refusal(f"{source.path.name} is empty: it holds no row. Give clean data to learn from.")
    if constant:
        verb = "is" if len(constant) == 1 else "are"
        notes.append(f"Column {listed(constant)} {verb} constant in the clean data: any other value will look strange.")
    by = source.options.calibrate_by
    if source.kind == "vector":
        return VectorSpec(columns, options.missing, options.invariances, by), notes
    if isinstance(source, ArraySource) and holds_windows(source):
        window = source.header.shape[1]
        if options.window not in (None, window):
            raise Refusal(
                f"--window {options.window}: {source.path.name} holds windows of {window} rows already; leave it out."
            )
    else:
        window = options.window or default_window(lengths)
        if window > max(lengths):
            raise Refusal(
                f"No item of {source.path.name} is as long as one window of {window} rows (the longest has "
                f"{max(lengths)}); "
                "give longer series, or a shorter --window."
            )
        if options.window is None:
            notes.append(f"Windows of {window} rows are taken; --window changes that.")
    if options.stride > window:
        raise Refusal(
            f"--stride {options.stride} is longer than a window of {window} rows, so rows would be passed over."
        )
    spec = SeriesSpec(columns, window, options.stride, stamp, options.missing, options.invariances, by)
    return replace(spec, step=rhythm.step()), notes


def default_window(lengths: Sequence[int]) -> int:
    """Rows per window for items of these lengths.

    Longer windows see more, but calibration counts windows that lie side by side: about 40 of them should fit into the
    two fifths of the rows that may be held out.
    """
    return max(4, min(64, sum(lengths) // 100, min(lengths) // 5))


def _first_readable(source: TableFiles) -> str:
    failed = []
    for name in source.names():
        try:
            source.open(name)
        except Refusal as refusal:
            failed.append(str(refusal))
            continue
        return name
    raise Refusal(
        failed[0] if len(failed) == 1 else f"No table of {source.path.name} can be read. {' '.join(failed[:3])}"
    )


def _survey(
    source: ArraySource | TableFiles, columns: tuple[str, ...], stamp: str | None, rhythm: Rhythm
) -> tuple[list[int], list[str]]:
    """Rows of each readable item that has any, and the columns that never change; the rhythm takes the timestamps."""
    spec = VectorSpec(columns)
    low: NDArray[np.float32] = np.full(len(columns), np.nan, np.float32)
    high = low.copy()
    lengths = []
    for chunks in row_items(source, spec, Wanted(columns, stamp is not None, stamp)):
        length = 0
        for chunk in rhythm.add(chunks):
            length += len(chunk.values)
            flat = chunk.values.reshape(-1, len(columns))
            if len(flat):
                # fmin and fmax pass NaN over.
                low = np.fmin(low, np.fmin.reduce(flat, axis=0))
                high = np.fmax(high, np.fmax.reduce(flat, axis=0))
        lengths += [length] if length else []
    return lengths, [name for name, a, b in zip(columns, low, high, strict=True) if a == b]
