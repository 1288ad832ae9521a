"""Images: decoding, depth, channels, size, regions of interest and tiles, for fitting and for scoring."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_files import folder, noise, opened, save

from vaegis.models.errors import Refusal
from vaegis.models.inputs import InputOptions, blocks, infer_spec, load, read_roi, roi_digest
from vaegis.models.inputs.images import tile_starts
from vaegis.models.pixels import Unreadable, conform, decode, probe, read
from vaegis.models.spec import ImageSpec, from_json, to_json


def encoded(image: Image.Image, form: str = "PNG", **save) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **save)
    return out.getvalue()


@pytest.mark.parametrize(
    ("form", "dtype"),
    [("PNG", np.uint8), ("BMP", np.uint8), ("TIFF", np.uint8), ("PNG", np.uint16), ("TIFF", np.uint16)],
)
def test_lossless_files_give_their_pixels(form, dtype):
    grey = noise(17, 23, dtype=dtype)
    data = encoded(Image.fromarray(grey), form)
    np.testing.assert_array_equal(decode(data), grey[..., None])
    assert decode(data).dtype == dtype
    assert (probe(data).height, probe(data).width, probe(data).depth) == (17, 23, 8 * grey.itemsize)


def test_colour_palette_alpha_and_bilevel_files():
    rgb = noise(16, 18, 3)
    image = Image.fromarray(rgb)
    np.testing.assert_array_equal(decode(encoded(image)), rgb)
    np.testing.assert_array_equal(decode(encoded(image, "WEBP", lossless=True)), rgb)
    with_alpha = image.copy()
    with_alpha.putalpha(Image.fromarray(noise(16, 18)))
    np.testing.assert_array_equal(decode(encoded(with_alpha)), rgb)
    palette = image.quantize(16)
    np.testing.assert_array_equal(decode(encoded(palette)), np.array(palette.convert("RGB")))
    clear = encoded(palette, transparency=bytes(range(16)))
    np.testing.assert_array_equal(decode(clear), np.array(palette.convert("RGB")))
    black_white = Image.fromarray(rgb[..., 0] > 128)
    np.testing.assert_array_equal(decode(encoded(black_white))[..., 0], (rgb[..., 0] > 128) * 255)


def test_exif_orientation_is_applied():
    grey = noise(16, 24)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown rotated 90 degrees clockwise
    data = encoded(Image.fromarray(grey), exif=exif)
    np.testing.assert_array_equal(decode(data)[..., 0], np.rot90(grey, -1))
    assert (probe(data).height, probe(data).width) == (24, 16)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "none of PNG"),
        (b"hello, this is text", "none of PNG"),
        (encoded(Image.new("RGB", (20, 20)), "GIF"), "none of PNG"),
        (encoded(Image.fromarray(noise(40, 40)))[:300], "not a readable image"),
        (encoded(Image.fromarray(noise(40, 40, 3)), "JPEG")[:400], "not a readable image"),
        (encoded(Image.new("F", (20, 20)), "TIFF"), "floating-point"),
    ],
)
def test_what_cannot_be_decoded_says_why(data, words):
    with pytest.raises(Unreadable, match=words):
        decode(data)


def test_a_pixel_bomb_is_refused_before_it_is_decoded():
    bomb = encoded(Image.new("1", (3000, 3000)))
    with pytest.raises(Unreadable, match="3000x3000"):
        decode(bomb, 1_000_000)
    huge = encoded(Image.new("1", (10_000, 20_000)))  # beyond Pillow's own limit, too
    with pytest.raises(Unreadable, match="more"):
        decode(huge)


def test_large_jpegs_are_drafted_by_the_fit_as_in_scoring(tmp_path):
    """Only where images are resized and a JPEG is at least eight times the size; never a PNG, nor an old bundle."""
    y, x = np.mgrid[:160, :136]
    wave = (127 + 60 * np.sin(x / 9) + 60 * np.cos(y / 7)).astype(np.uint8)
    for name, suffix in (("jpeg", ".jpg"), ("png", ".png")):
        save(tmp_path / name / f"part{suffix}", wave)
    specs = {
        (name, size): infer_spec(opened(tmp_path / name), InputOptions(size=(size, size)))[0]
        for name in ("jpeg", "png")
        for size in (16, 32)
    }
    assert [key for key, spec in specs.items() if spec.draft] == [("jpeg", 16)]
    assert not infer_spec(opened(tmp_path / "jpeg"), InputOptions())[0].draft
    spec = specs["jpeg", 16]
    assert from_json(to_json(spec)) == spec and "draft" not in to_json(specs["png", 16])
    source, data = opened(tmp_path / "jpeg"), (tmp_path / "jpeg" / "part.jpg").read_bytes()
    fitted = load(source, spec, tmp_path / "spool").take(np.array([0]))
    (scored,) = blocks(source, spec)
    np.testing.assert_array_equal(fitted, scored.parts)
    np.testing.assert_array_equal(fitted[0], read(data, spec))
    whole = read(data, replace(spec, draft=False)).astype(int)
    assert 0 < np.abs(fitted[0] - whole).max() <= 2
    # Turned by its EXIF orientation, the draft is that of the turned image.
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(wave), "JPEG", exif=exif, quality=95)
    wide = ImageSpec(height=8, width=20, channels=1, fit="resize", draft=True)
    assert np.abs(read(turned, wide) - read(turned, replace(wide, draft=False)).astype(int)).max() <= 2


def test_depths_and_channels_are_brought_into_line():
    grey8, grey16 = noise(2, 16, 16, 1), noise(2, 16, 16, 1, dtype=np.uint16)
    rgb = noise(2, 16, 16, 3)
    deep = conform(grey8, ImageSpec(16, 16, 1, depth=16))
    assert deep.dtype == np.uint16
    np.testing.assert_array_equal(deep, grey8.astype(int) * 257)
    with pytest.raises(Unreadable, match="16 bits"):
        conform(grey16, ImageSpec(16, 16, 1))
    np.testing.assert_array_equal(conform(grey8, ImageSpec(16, 16, 3)), np.repeat(grey8, 3, -1))
    luminance = conform(rgb, ImageSpec(16, 16, 1))[..., 0]
    np.testing.assert_array_equal(luminance, [np.array(Image.fromarray(one).convert("L")) for one in rgb])
    np.testing.assert_array_equal(conform(noise(2, 16, 16, 4)[..., :], ImageSpec(16, 16, 3)).shape, (2, 16, 16, 3))
    with pytest.raises(Unreadable, match="5 channels"):
        conform(noise(1, 16, 16, 5), ImageSpec(16, 16, 3))


def test_resizing_averages_and_keeps_16_bits():
    spec = ImageSpec(16, 16, 1, depth=16, fit="resize")
    pixels = np.full((1, 64, 48, 1), 40_000, np.uint16)
    np.testing.assert_array_equal(conform(pixels, spec), np.full((1, 16, 16, 1), 40_000))
    stripes = np.zeros((1, 64, 64, 1), np.uint8)
    stripes[:, ::2] = 200
    small = conform(stripes, ImageSpec(16, 16, 1, fit="resize"))
    assert np.abs(small.astype(int) - 100).max() <= 13  # picking single pixels would give 0 or 200
    colour = noise(1, 40, 40, 3)
    by_channel = [conform(colour[..., c : c + 1], ImageSpec(16, 16, 1, fit="resize")) for c in range(3)]
    np.testing.assert_array_equal(conform(colour, ImageSpec(16, 16, 3, fit="resize")), np.concatenate(by_channel, -1))


def test_one_size_is_kept_and_another_is_unjudged_in_place(tmp_path):
    images = folder(tmp_path / "clean", (24, 30), (24, 30))
    spec, notes = infer_spec(opened(tmp_path / "clean"), InputOptions())
    assert spec == ImageSpec(24, 30, 1)
    assert notes == []
    save(tmp_path / "live" / "part_1.png", images[0])
    save(tmp_path / "live" / "part_2.png", noise(30, 24))
    (tmp_path / "live" / "part_3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    save(tmp_path / "live" / "part_10.png", images[1])
    (block,) = blocks(opened(tmp_path / "live"), spec)
    assert list(block.items) == ["part_1.png", "part_2.png", "part_3.png", "part_10.png"]
    assert block.count.tolist() == [1, 0, 0, 1]
    assert block.index.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(block.parts[block.first[[0, 3]]][..., 0], images)
    assert "30x24" in block.errors[1]
    assert "24x30" in block.errors[1]
    assert "--size" in block.errors[1]
    assert block.errors[2].startswith("part_3.png: not a readable image (")
    assert str(tmp_path) not in "".join(block.errors.values())


def test_sizes_that_differ_are_resized_to_their_median(tmp_path):
    folder(tmp_path, (20, 40), (24, 44), (90, 50))
    spec, notes = infer_spec(opened(tmp_path), InputOptions())
    assert (spec.height, spec.width, spec.fit) == (24, 44, "resize")
    assert notes == ["Image sizes differ (3 sizes): all are resized to 24x44, their median."]
    (block,) = blocks(opened(tmp_path), spec)
    assert block.parts.shape == (3, 24, 44, 1)
    assert block.errors == {}


def test_a_size_asked_for_holds_for_arrays_too(tmp_path):
    x = noise(5, 40, 48)
    np.savez(tmp_path / "a.npz", x=x)
    spec, _ = infer_spec(opened(tmp_path / "a.npz"), InputOptions(size=(16, 24)))
    assert (spec.height, spec.width, spec.fit) == (16, 24, "resize")
    (block,) = blocks(opened(tmp_path / "a.npz"), spec)
    for i, pixels in enumerate(x):
        save(tmp_path / "f" / f"{i}.png", pixels)
    (same,) = blocks(opened(tmp_path / "f"), spec)
    np.testing.assert_array_equal(block.parts, same.parts)


def test_mixed_colours_and_depths_are_noted(tmp_path):
    save(tmp_path / "a.png", noise(20, 20))
    save(tmp_path / "b.png", noise(20, 20, 3))
    save(tmp_path / "c.png", noise(20, 20, dtype=np.uint16))
    spec, notes = infer_spec(opened(tmp_path), InputOptions())
    assert (spec.channels, spec.depth) == (3, 16)
    assert "colour" in notes[0]
    assert "16" in notes[1]


@pytest.mark.parametrize(
    ("sizes", "options", "words"),
    [
        ([(8, 8)], {}, "--size 16x16"),
        ([(30, 30)], {"size": (8, 30)}, "16 to 512"),
        ([(30, 30)], {"size": (30, 600)}, "16 to 512"),
        ([(30, 30)], {"tile": 64}, "30x30"),
        ([(30, 30)], {"size": (16, 16), "tile": 16}, "exclude each other"),
        ([(30, 30)], {"tile": 16, "overlap": 16}, "--overlap 16"),
        ([(30, 30)], {"window": 5}, "--window does not apply to images"),
        ([(30, 30)], {"missing": "allow"}, "--missing allow does not apply"),
        ([(30, 30)], {"invariances": ("rotaton",)}, "rotaton.*rotation"),
    ],
)
def test_options_that_cannot_be_met_are_refused(tmp_path, sizes, options, words):
    folder(tmp_path, *sizes)
    with pytest.raises(Refusal, match=words):
        infer_spec(opened(tmp_path), InputOptions(**options))


def test_a_folder_of_which_nothing_can_be_read_names_three(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"junk")
    with pytest.raises(Refusal, match=r"0\.png.*none of PNG.*1\.png.*2\.png") as refusal:
        infer_spec(opened(tmp_path), InputOptions())
    assert "3.png" not in str(refusal.value)


def test_channels_first_arrays_are_recognised(tmp_path):
    np.savez(tmp_path / "a.npz", x=noise(4, 3, 32, 32))
    with pytest.raises(Refusal, match="transpose"):
        infer_spec(opened(tmp_path / "a.npz"), InputOptions())


@pytest.mark.parametrize(("length", "tile", "overlap"), [(600, 256, 32), (256, 256, 32), (257, 256, 0), (100, 16, 5)])
def test_tiles_cover_every_pixel_and_stay_inside(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    covered = np.zeros(length, int)
    for start in starts:
        assert 0 <= start <= length - tile
        covered[start : start + tile] += 1
    assert covered.min() >= 1
    assert starts[0] == 0
    assert starts[-1] == length - tile
    assert all(b - a <= tile - overlap for a, b in zip(starts, starts[1:], strict=False))


def test_large_images_are_tiled_by_default(tmp_path):
    images = folder(tmp_path, (300, 600), (260, 520))
    spec, notes = infer_spec(opened(tmp_path), InputOptions(tile=None))
    assert (spec.height, spec.width, spec.tile, spec.overlap) == (256, 256, True, 32)
    assert "tiles of 256x256" in notes[0]
    save(tmp_path / "part_2.png", noise(100, 700))
    (block,) = blocks(opened(tmp_path), spec)
    assert block.count.tolist() == [6, 6, 0]
    assert "smaller than one tile" in block.errors[2]
    assert list(block.extents) == [(300, 600), (260, 520), (0, 0)]
    for i, image in enumerate(images):
        rebuilt = np.zeros_like(image)
        for part in range(block.first[i], block.first[i] + block.count[i]):
            top, left = block.place[part]
            rebuilt[top : top + 256, left : left + 256] = block.parts[part, ..., 0]
        np.testing.assert_array_equal(rebuilt, image)


def test_blocks_are_cut_to_the_rows_asked_for(tmp_path):
    x = noise(10, 20, 20)
    np.savez(tmp_path / "a.npz", x=x, lot=np.arange(10) // 5)
    source = opened(tmp_path / "a.npz", rows=(2, 9), calibrate_by="lot")
    spec, _ = infer_spec(source, InputOptions())
    found = list(blocks(source, spec, rows=3))
    assert [len(block) for block in found] == [3, 3, 1]
    assert np.concatenate([block.index for block in found]).tolist() == list(range(2, 9))
    np.testing.assert_array_equal(np.concatenate([block.parts for block in found])[..., 0], x[2:9])
    assert [g for block in found for g in block.groups] == ["0"] * 3 + ["1"] * 4
    assert set(found[0].items) == {"a.npz"}


def mask_file(path: Path, mask: np.ndarray) -> Path:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path


def test_outside_the_region_of_interest_pixels_are_0(tmp_path):
    images = folder(tmp_path / "im", (20, 24), (20, 24))
    mask = np.zeros((20, 24), bool)
    mask[5:10, 3:9] = True
    path = mask_file(tmp_path / "roi.png", mask)
    roi = read_roi(path)
    np.testing.assert_array_equal(roi, mask)
    spec, _ = infer_spec(opened(tmp_path / "im"), InputOptions(roi=path))
    assert spec.roi == roi_digest(mask)
    (block,) = blocks(opened(tmp_path / "im"), spec, roi=roi)
    np.testing.assert_array_equal(block.parts[..., 0], [np.where(mask, image, 0) for image in images])
    samples = load(opened(tmp_path / "im"), spec, tmp_path / "spool", roi=roi)
    np.testing.assert_array_equal(samples.take(np.arange(2)), block.parts)
    for wrong, words in ((None, "--roi"), (~mask, "not the one")):
        with pytest.raises(Refusal, match=words):
            list(blocks(opened(tmp_path / "im"), spec, roi=wrong))
    with pytest.raises(Refusal, match="without one"):
        list(blocks(opened(tmp_path / "im"), ImageSpec(20, 24, 1), roi=roi))


def test_a_mask_follows_resizing_and_tiling(tmp_path):
    folder(tmp_path / "im", (40, 48))
    mask = np.zeros((40, 48), bool)
    mask[:20, :24] = True
    path = mask_file(tmp_path / "roi.png", mask)
    spec, _ = infer_spec(opened(tmp_path / "im"), InputOptions(roi=path, size=(20, 24)))
    (block,) = blocks(opened(tmp_path / "im"), spec, roi=mask)
    assert block.parts[0, 10:].max() == 0
    assert block.parts[0, :, 12:].max() == 0
    assert (block.parts[0, :10, :12] > 0).mean() > 0.9
    tiled, _ = infer_spec(opened(tmp_path / "im"), InputOptions(roi=path, tile=16, overlap=0))
    (block,) = blocks(opened(tmp_path / "im"), tiled, roi=mask)
    assert block.place.tolist() == [[0, 0], [0, 16], [16, 0], [16, 16]]  # of 9; the others hold nothing to inspect
    save(tmp_path / "im" / "other.png", noise(44, 48))
    (block,) = blocks(opened(tmp_path / "im"), tiled, roi=mask)
    assert "44x48" in block.errors[0]


def test_masks_that_cannot_serve_are_refused(tmp_path):
    folder(tmp_path / "im", (20, 24))
    with pytest.raises(Refusal, match="0 everywhere"):
        read_roi(mask_file(tmp_path / "black.png", np.zeros((20, 24), bool)))
    with pytest.raises(Refusal, match="check the path"):
        read_roi(tmp_path / "none.png")
    path = mask_file(tmp_path / "roi.png", np.ones((20, 20), bool))
    with pytest.raises(Refusal, match="20x20.*20x24"):
        infer_spec(opened(tmp_path / "im"), InputOptions(roi=path))


def test_an_array_that_does_not_fit_the_model_is_refused_whole(tmp_path):
    np.savez(tmp_path / "a.npz", x=noise(3, 20, 20))
    with pytest.raises(Refusal, match="20x20.*24x24"):
        list(blocks(opened(tmp_path / "a.npz"), ImageSpec(24, 24, 1)))
