"""Files of several frames: one file is one sample, so none passes for its first frame."""

import io

import numpy as np
import pytest
from PIL import Image
from source_files import noise, save

from vaegis.models.inputs import InputOptions, blocks, from_files, infer_spec, load
from vaegis.models.pixels import Unreadable, decode, probe
from vaegis.models.sources import SourceOptions, open_source
from vaegis.models.spec import ImageSpec


def frames(form, count=2, **options):
    first, *others = [Image.fromarray(noise(32, 32)) for _ in range(count)]
    if form in ("WEBP", "MPO"):
        first, *others = [image.convert("RGB") for image in (first, *others)]
    out = io.BytesIO()
    first.save(out, form, save_all=True, append_images=others, **options)
    return out.getvalue()


@pytest.mark.parametrize(("form", "count"), [("TIFF", 2), ("TIFF", 5), ("PNG", 3), ("WEBP", 2), ("MPO", 2)])
def test_a_file_of_several_frames_is_unreadable_with_their_number(form, count):
    data = frames(form, count)
    for act in (decode, probe):
        with pytest.raises(Unreadable, match=f"it holds {count} frames, .*save each frame as a file of its own"):
            act(data)


@pytest.mark.parametrize("form", ["TIFF", "PNG", "WEBP", "MPO"])
def test_one_frame_written_as_many_is_an_image(form):
    assert decode(frames(form, 1)).shape[:2] == (32, 32)


def test_a_smaller_copy_beside_the_image_is_no_frame():
    out = io.BytesIO()
    image = Image.fromarray(noise(32, 32))
    small = image.resize((8, 8))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    image.save(out, "TIFF", save_all=True, append_images=[small])
    np.testing.assert_array_equal(decode(out.getvalue())[..., 0], np.asarray(image))


def test_fit_leaves_it_out_by_name_and_score_keeps_its_row(tmp_path):
    for i in range(3):
        save(tmp_path / f"p{i}.png", noise(32, 32))
    (tmp_path / "stack.tif").write_bytes(frames("TIFF", 2))
    source = open_source(tmp_path, SourceOptions())
    spec, _ = infer_spec(source, InputOptions())
    samples = load(source, spec, tmp_path / "spool")
    assert [name for name, _ in samples.skipped] == ["stack.tif"]
    (block,) = blocks(source, spec)
    assert block.count.tolist() == [1, 1, 1, 0]
    assert "stack.tif: it holds 2 frames" in block.errors[3]
    uploaded = from_files(ImageSpec(32, 32, 1), [("stack.tif", frames("TIFF", 2))])
    assert "it holds 2 frames" in uploaded.errors[0]
