"""Compressed tables: what they unpack to is known, and bounded, before they are unpacked."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vaegis.models.errors import Malformed, Refusal, TooLarge
from vaegis.models.inputs import Limits, from_arrow, from_files
from vaegis.models.spec import VectorSpec

SPEC = VectorSpec(("a", "b"))


def table(rows, **more):
    return pa.table({"a": np.arange(rows, dtype=np.float32), "b": np.zeros(rows, np.float32), **more})


def arrow(content, compression=None, batch=None):
    out = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(out, content.schema, options=options) as writer:
        writer.write_table(content, batch)
    return out.getvalue()


def parquet(content, **options):
    out = io.BytesIO()
    pq.write_table(content, out, **options)
    return out.getvalue()


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("batch", [None, 3])
def test_compressed_streams_hold_what_others_hold(compression, batch):
    words = pa.array(["x", "y"] * 5).dictionary_encode()
    block = from_arrow(SPEC, arrow(table(10, word=words), compression, batch))
    np.testing.assert_array_equal(block.parts, np.stack([np.arange(10), np.zeros(10)], -1))


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_stream_that_unpacks_to_too_much_is_refused(compression):
    """40 MB of zeros: in few rows, in a column that nobody asked for, and in a dictionary."""
    long = pa.array(["\0" * 10_000_000] * 4, pa.large_string())
    limits = Limits(bytes=1_000_000)
    for junk in (long, pa.array(["\0" * 40_000_000, "x"] * 2, pa.large_string()).dictionary_encode()):
        body = arrow(table(4, junk=junk), compression)
        assert len(body) < 300_000
        before = pa.total_allocated_bytes()
        with pytest.raises(TooLarge, match=r"unpacks to 4\d{7} bytes, more than the 1000000"):
            from_arrow(SPEC, body, limits=limits)
        assert pa.total_allocated_bytes() == before
    with pytest.raises(TooLarge, match="1000 rows are more than the 100"):
        from_arrow(SPEC, arrow(table(1000), compression), limits=Limits(samples=100))


def test_a_parquet_file_that_unpacks_to_too_much_is_refused():
    limits = Limits(bytes=1_000_000)
    wide = parquet(table(500_000), compression="zstd", use_dictionary=False)
    with pytest.raises(TooLarge, match="t.parquet: 500000 rows"):
        from_files(SPEC, [("t.parquet", wide)], limits=limits)
    junk = pa.array(["\0" * 10_000_000] * 4, pa.large_string())
    with pytest.raises(TooLarge, match=r"t.parquet: The table unpacks to 4\d{7} bytes"):
        from_files(SPEC, [("t.parquet", parquet(table(4, junk=junk), use_dictionary=False))], limits=limits)
    assert len(from_files(SPEC, [("t.parquet", parquet(table(4)))], limits=limits)) == 4
    with pytest.raises(Refusal):
        from_files(SPEC, [("t.parquet", parquet(table(4))[:-9])], limits=limits)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_damaged_stream_is_malformed_and_nothing_worse(compression):
    """Some hundred streams with a few bytes changed, or cut short: judged or refused, never another error."""
    whole, rng = (
        arrow(table(6, word=pa.array(["x", "y"] * 3).dictionary_encode()), compression),
        np.random.default_rng(0),
    )
    refused = 0
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            raw[rng.integers(len(raw))] = rng.integers(256)
        try:
            from_arrow(SPEC, bytes(raw[: rng.integers(len(raw)) if rng.random() < 0.2 else len(raw)]))
        except Refusal:
            refused += 1
    assert 50 < refused < 300
    with pytest.raises(Malformed):
        from_arrow(SPEC, b"")
