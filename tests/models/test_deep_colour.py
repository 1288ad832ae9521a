"""Colour of 16 bits keeps all of them: by the file's own bytes, for every form that is read; the others are refused."""

import io

import numpy as np
import pytest
from deep_files import deep_png, deep_tiff
from PIL import Image

from vaegis.models.inputs import InputOptions, blocks, from_files, infer_spec, load
from vaegis.models.pixels import Unreadable, decode, probe, read
from vaegis.models.sources import SourceOptions, open_source
from vaegis.models.spec import ImageSpec

RNG = np.random.default_rng(0)


def noise(channels, most=65536):
    return RNG.integers(0, most, (18, 23, channels)).astype(np.uint16)


@pytest.mark.parametrize("most", [65536, 4096])  # 4096: a camera of 12 bits
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_gives_its_pixels_to_the_last_bit(channels, filtered, most):
    pixels = noise(channels, most)
    data = deep_png(pixels, filtered)
    colours = 1 if channels < 3 else 3
    np.testing.assert_array_equal(decode(data), pixels[..., :colours])
    form = probe(data)
    assert (form.height, form.width, form.channels, form.depth) == (18, 23, colours, 16)


@pytest.mark.parametrize("extra", [None, 0, 2])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_gives_its_pixels_to_the_last_bit(order, packed, extra):
    pixels = noise(3 if extra is None else 4)
    data = deep_tiff(pixels, order, packed, extra=extra)
    np.testing.assert_array_equal(decode(data), pixels[..., :3])
    assert (probe(data).channels, probe(data).depth) == (3, 16)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (deep_tiff(noise(3), planar=True), "separate planes"),
        (deep_tiff(noise(3), packed=True, planar=True), "separate planes"),
        (deep_tiff(noise(4), extra=1), "RGBA"),
    ],
)
def test_a_form_of_which_only_8_bits_could_be_had_is_refused_by_name(data, word):
    with pytest.raises(Unreadable, match=f"16 bits in {word}.*save it as RGB or grey with 16 bits"):
        decode(data)


def test_a_broken_file_is_unreadable_and_no_crash():
    whole = deep_png(noise(3)), deep_tiff(noise(3), packed=True), deep_png(noise(2))
    for data in whole:
        for cut in range(30, len(data) - 20, 101):
            with pytest.raises(Unreadable):
                decode(data[:cut])


def test_a_fit_and_a_score_see_16_bits_and_a_model_of_8_bits_refuses_them(tmp_path):
    images = [noise(3, 4096) for _ in range(4)]
    for i, pixels in enumerate(images):
        (tmp_path / f"p{i}.{'png' if i % 2 else 'tif'}").write_bytes((deep_png if i % 2 else deep_tiff)(pixels))
    source = open_source(tmp_path, SourceOptions())
    spec, notes = infer_spec(source, InputOptions())
    assert isinstance(spec, ImageSpec)
    assert (spec.channels, spec.depth, notes) == (3, 16, [])
    samples = load(source, spec, tmp_path / "spool")
    np.testing.assert_array_equal(samples.take(np.arange(4)), images)
    (block,) = blocks(source, spec)
    np.testing.assert_array_equal(block.parts, images)
    uploaded = from_files(spec, [("a.png", deep_png(images[0])), ("b.tif", deep_tiff(images[1]))])
    np.testing.assert_array_equal(uploaded.parts, images[:2])
    eight = ImageSpec(18, 23, 3)
    block = from_files(eight, [("a.png", deep_png(images[0]))])
    assert block.count.tolist() == [0]
    assert "16 bits, and the model takes 8" in block.errors[0]


def test_orientation_is_applied_to_both_bytes():
    pixels = noise(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("L", (1, 1)).save(out, "PNG", exif=exif)
    chunk = out.getvalue()
    at = chunk.index(b"eXIf") - 4
    piece = chunk[at : at + 12 + int.from_bytes(chunk[at : at + 4], "big")]
    data = deep_png(pixels)
    turned = data[:33] + piece + data[33:]
    np.testing.assert_array_equal(decode(turned), np.rot90(pixels, -1))
    assert (probe(turned).height, probe(turned).width) == (23, 18)
    np.testing.assert_array_equal(read(turned, ImageSpec(23, 18, 3, depth=16)), np.rot90(pixels, -1))
