"""Clean images on their way into a fit: what is kept, what is named, and the digest of it all."""

import numpy as np
import pytest
from source_files import folder, opened, save

from vaegis.models.errors import Refusal
from vaegis.models.inputs import InputOptions, blocks, infer_spec, load
from vaegis.models.spec import ImageSpec


def test_a_spool_holds_what_can_be_read_and_names_the_rest(tmp_path):
    images = folder(tmp_path / "lot1", (20, 20), (20, 20))
    save(tmp_path / "lot2" / "a.png", images[0])
    (tmp_path / "lot2" / "b.png").write_bytes(b"junk")
    source = opened(tmp_path, group_by="folder", calibrate_by=r"(lot\d)")
    spec, _ = infer_spec(source, InputOptions())
    told: list[tuple[int, int | None]] = []
    samples = load(source, spec, tmp_path / "spool", progress=lambda done, total: told.append((done, total)))
    assert len(samples) == 3
    assert list(samples.items) == ["lot1/part_0.png", "lot1/part_1.png", "lot2/a.png"]
    assert list(samples.groups) == ["lot1", "lot1", "lot2"]
    assert list(samples.calibration_groups) == ["lot1", "lot1", "lot2"]
    assert [item for item, _ in samples.skipped] == ["lot2/b.png"]
    assert told[-1] == (3, 4)
    np.testing.assert_array_equal(samples.take(np.array([1, 0]))[..., 0], [images[1], images[0]])
    assert samples.content(0) == samples.content(2)
    assert samples.content(0) != samples.content(1)
    assert len(samples.content(0)) == 16


def test_the_digest_is_of_the_content_not_of_the_files(tmp_path):
    images = folder(tmp_path / "one", (20, 20), (20, 20), (20, 20))
    for i, pixels in enumerate(images):
        save(tmp_path / "two" / f"{i}.bmp", pixels)
    np.savez(tmp_path / "three.npz", x=np.stack(images))
    np.savez(tmp_path / "four.npz", x=np.stack(images[::-1]))
    digests = []
    for name in ("one", "two", "three.npz", "four.npz"):
        source = opened(tmp_path / name)
        digests.append(load(source, infer_spec(source, InputOptions())[0], tmp_path / "spool").digest)
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_tiled_samples_keep_their_tiles_together(tmp_path):
    folder(tmp_path, (40, 32), (32, 32))
    spec, _ = infer_spec(opened(tmp_path), InputOptions(tile=32, overlap=0))
    samples = load(opened(tmp_path), spec, tmp_path / "spool")
    assert samples.count.tolist() == [2, 1]
    assert samples.first.tolist() == [0, 2]
    (block,) = blocks(opened(tmp_path), spec)
    np.testing.assert_array_equal(samples.take(np.arange(3)), block.parts)


def test_a_group_expression_must_match_every_clean_image(tmp_path):
    folder(tmp_path, (20, 20))
    source = opened(tmp_path, group_by="lot([0-9]+)")
    with pytest.raises(Refusal, match=r"does not match part_0\.png"):
        load(source, ImageSpec(20, 20, 1), tmp_path / "spool")
