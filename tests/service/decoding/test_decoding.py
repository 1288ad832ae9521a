"""Images are decoded in processes of their own: what a broken or hostile file costs, and what it does not."""

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from http_server import multipart, serving
from PIL import Image

from vaegis.models.errors import Refusal, TooLarge
from vaegis.models.inputs import Limits, from_files, from_json
from vaegis.models.inputs.uploads import read_here
from vaegis.models.pixels import Unreadable
from vaegis.models.spec import ImageSpec
from vaegis.service.decoding.pool import Decoders
from vaegis.service.errors import Late

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
RNG = np.random.default_rng(0)
SMALL = ImageSpec(height=4, width=4, channels=1)
ANY = ImageSpec(height=4, width=4, channels=1, fit="resize")
LIMITS = Limits()
MEMORY = 1280 << 20


def encoded(pixels, form="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


def noise(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype)


def png_of_zeros(side):
    """A PNG of a few thousand bytes that holds side x side colour pixels."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(1 + 3 * side)) for _ in range(side)) + rows.flush()
    head = side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def jpeg_of_scans(count, side=4000):
    """A progressive JPEG whose last scan comes so often: every one is decoded again, over the whole image."""
    plain = encoded(np.zeros((side, side), np.uint8), "JPEG", progressive=True)
    scan = plain.rindex(b"\xff\xda")
    return plain[:-2] + plain[scan:-2] * count + plain[-2:]


OTHERS = set()  # decoders of services that other tests use


@pytest.fixture(autouse=True)
def others():
    OTHERS.clear()
    OTHERS.update(children())


def children():
    """Decoders of the test that have not ended, by their id."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, parent = (process / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            ours = int(parent) == os.getpid() and state != "Z" and int(process.name) not in OTHERS
            if ours and b"vaegis.service.decoding.process" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


@pytest.fixture
def decoders():
    """Makes decoders, and ends them."""
    made = []

    def make(processes=1, memory=MEMORY, seconds=30):
        made.append(Decoders(processes, memory, seconds, lost.append))
        return made[-1]

    lost = make.lost = []
    yield make
    for one in made:
        one.close()
    assert children() == []


def test_pixels_are_those_of_the_fit(decoders):
    """Whatever the format, and however many there are at a time."""
    pool = decoders(2)
    grey, colour, deep = noise(9, 7), noise(9, 7, 3), noise(9, 7, dtype=np.uint16)
    files = [b"", encoded(grey), encoded(colour, "JPEG"), encoded(grey, "BMP"), encoded(colour, "TIFF"), b"no image"]
    for spec in (ANY, ImageSpec(9, 7, 3), ImageSpec(4, 4, 3, tile=True), ImageSpec(5, 5, 1, fit="resize", depth=16)):
        data = [*files, *[encoded(noise(9, 7)) for _ in range(90)], encoded(deep)]
        here, there = list(read_here(data, spec, LIMITS)), list(pool.read(data, spec, LIMITS))
        assert len(here) == len(there) == 97
        for a, b in zip(here, there, strict=True):
            if isinstance(a, Unreadable):
                assert isinstance(b, Unreadable) and str(a) == str(b)
            else:
                assert a.dtype == b.dtype and np.array_equal(a, b)
    assert len(children()) == 2


def test_a_decoder_starts_with_the_first_image_and_stays(decoders):
    pool = decoders(2)
    assert children() == []
    for _ in range(3):
        list(pool.read([encoded(noise(4, 4))], SMALL, LIMITS))
    assert len(children()) == 1
    none = decoders(0)
    assert np.array_equal(next(iter(none.read([encoded(np.eye(4, dtype=np.uint8))], SMALL, LIMITS)))[..., 0], np.eye(4))
    assert len(children()) == 1


def test_it_imports_neither_onnxruntime_nor_torch_and_sees_no_setting(decoders, monkeypatch):
    monkeypatch.setenv("VAEGIS_STORE_URL", "postgresql://vaegis:secret@db/vaegis")
    list(decoders().read([encoded(noise(4, 4))], SMALL, LIMITS))
    (pid,) = children()
    mapped = Path(f"/proc/{pid}/maps").read_text()
    assert "PIL" in mapped and "numpy" in mapped
    assert not any(name in mapped for name in ("onnxruntime", "libtorch", "pyarrow"))
    assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert [line.split()[-3] for line in limits.splitlines() if line.startswith("Max file size")] == ["0"]
    # Standard input is the socket to us; the rest leads nowhere, and nothing of ours was inherited.
    opened = {int(f.name): os.readlink(f) for f in Path(f"/proc/{pid}/fd").iterdir()}
    assert opened.pop(0).startswith("socket:") and set(opened.values()) == {"/dev/null"}


def test_a_decompression_bomb_costs_its_own_verdict(decoders):
    """108 MB of pixels in a file of some hundred kB, and 64 MiB of memory to decode it in."""
    pool = decoders(memory=64 << 20)
    bomb = png_of_zeros(6000)
    assert len(bomb) < 200_000
    first, broken, last = pool.read([encoded(noise(4, 4)), bomb, encoded(noise(4, 4))], ANY, LIMITS)
    assert isinstance(first, np.ndarray) and isinstance(last, np.ndarray)
    assert isinstance(broken, Unreadable)
    assert "67108864 bytes" in str(broken) and "VAEGIS_DECODER_MEMORY_BYTES" in str(broken)
    # Where there is enough memory, the limit of pixels stops it before it is decoded.
    (broken,) = decoders().read([bomb], ANY, Limits(pixels=1_000_000))
    assert "6000x6000" in str(broken) and "1000000" in str(broken)


def test_a_file_that_is_never_done_is_given_up(decoders):
    pool = decoders(seconds=1)
    good = encoded(noise(4, 4))
    files = [good, jpeg_of_scans(20_000), good]
    assert len(files[1]) < 1_000_000
    first, slow, last = pool.read(files, ANY, LIMITS)
    assert isinstance(first, np.ndarray) and isinstance(last, np.ndarray)
    assert isinstance(slow, Unreadable) and "1 s of VAEGIS_DECODE_SECONDS" in str(slow)
    assert set(decoders.lost) == {"time"}
    assert len(children()) == 1


def in_thread(work):
    """Runs `work` beside the test; what it gave is in the list when the thread has ended."""
    given = []
    thread = threading.Thread(target=lambda: given.extend(work()))
    thread.start()
    return thread, given


def waits_for_an_answer(thread):
    """Until the thread waits for what a decoder says."""
    deadline = time.monotonic() + 20
    while True:
        frame = sys._current_frames().get(thread.ident)
        if frame is not None and [frame.f_code.co_name, frame.f_back.f_code.co_name] == ["_receive", "_answer"]:
            return
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)


def test_after_the_deadline_nothing_more_is_decoded(decoders):
    pool, good = decoders(seconds=2), encoded(noise(4, 4))
    with pytest.raises(Late):
        pool.read([good], SMALL, LIMITS, deadline=time.monotonic() - 1)
    assert children() == []  # nothing was started for it
    (first,) = pool.read([good], SMALL, LIMITS, deadline=time.monotonic() + 30)
    assert isinstance(first, np.ndarray)
    busy, given = in_thread(lambda: pool.read([jpeg_of_scans(20_000)], ANY, LIMITS))
    waits_for_an_answer(busy)
    with pytest.raises(Late):  # while it waits for the only decoder
        pool.read([good], SMALL, LIMITS, deadline=time.monotonic() + 0.1)
    assert busy.is_alive()
    busy.join()
    assert isinstance(given[0], Unreadable)
    assert isinstance(next(iter(pool.read([good], SMALL, LIMITS))), np.ndarray)


@pytest.mark.parametrize("count", [1, 3])
def test_a_decoder_killed_by_another_hand_costs_nothing(decoders, count):
    """A stopped decoder is sent images, then killed: another one decodes them."""
    pool = decoders()
    good = encoded(noise(4, 4))
    list(pool.read([good], SMALL, LIMITS))
    (pid,) = children()
    os.kill(pid, signal.SIGSTOP)
    thread, given = in_thread(lambda: pool.read([good] * count, SMALL, LIMITS))
    waits_for_an_answer(thread)
    os.kill(pid, signal.SIGKILL)
    thread.join(30)
    assert len(given) == count and decoders.lost == ["died"]
    assert all(isinstance(pixels, np.ndarray) for pixels in given)
    # So it is between two requests.
    (pid,) = children()
    os.kill(pid, signal.SIGKILL)
    assert isinstance(next(iter(pool.read([good], SMALL, LIMITS))), np.ndarray)


def test_an_image_that_kills_its_decoder_is_unjudged(decoders):
    """Both decoders that get it are killed over it; then the next image is decoded."""
    pool = decoders()
    good = encoded(noise(4, 4))
    list(pool.read([good], ANY, LIMITS))
    thread, given = in_thread(lambda: pool.read([jpeg_of_scans(20_000)], ANY, LIMITS))
    for _ in range(2):
        waits_for_an_answer(thread)
        before = children()
        os.kill(before[0], signal.SIGKILL)
        while thread.is_alive() and children() in (before, []):
            time.sleep(0.001)
    thread.join(30)
    (broken,) = given
    assert isinstance(broken, Unreadable) and "its decoder ended over it" in str(broken)
    assert decoders.lost == ["died"] * 2
    assert isinstance(next(iter(pool.read([good], ANY, LIMITS))), np.ndarray)


def test_small_files_that_decode_to_much_are_refused():
    """Many of them, or few large ones, before the memory is taken."""
    large = ImageSpec(height=512, width=512, channels=3, fit="resize")
    dots = [(f"{i}.png", encoded(noise(1, 1))) for i in range(20)]
    with pytest.raises(TooLarge, match="15728640 bytes once they are decoded"):
        from_files(large, dots, limits=Limits(bytes=10_000_000))
    with pytest.raises(TooLarge, match="15728640 bytes"):
        from_json(large, {"data": np.zeros((20, 1, 1), int).tolist()}, limits=Limits(bytes=10_000_000))
    tiles = ImageSpec(height=16, width=16, channels=3, tile=True, overlap=8)
    with pytest.raises(TooLarge):
        from_files(tiles, [("a.png", png_of_zeros(400))], limits=Limits(bytes=1_000_000))


def test_decoded_images_are_counted_before_they_are_received(decoders):
    tiles = ImageSpec(height=16, width=16, channels=3, tile=True)
    pool = decoders(2)
    with pytest.raises(TooLarge, match="more than the 1000000"):
        pool.read([png_of_zeros(400)] * 6, tiles, Limits(bytes=1_000_000))
    assert isinstance(next(iter(pool.read([png_of_zeros(400)], tiles, LIMITS))), np.ndarray)


def test_one_broken_file_of_a_request_is_unjudged(fill, tmp_path):
    """Over HTTP: the bomb and the torn file are unjudged with a reason each, the others are judged."""
    settings = fill(tmp_path / "home").model_copy(update={"decode_seconds": 1, "decoders": 1})
    good = encoded(np.full((4, 4), 110, np.uint8))
    with serving(settings) as client:
        assert client.score("image", {"data": [[[110] * 4] * 4]})[0] == 200
        assert client.score("image", bytes([110] * 16), "application/octet-stream")[0] == 200
        assert children() == []  # neither needs a decoder
        form = multipart(
            [("a.png", good), ("bomb.jpg", jpeg_of_scans(20_000)), ("torn.png", good[:40]), ("b.png", good)]
        )
        status, answer = client.score("image", *form)
        assert status == 200, answer
        a, bomb, torn, b = answer["results"]
        assert a["score"] == b["score"] == 100.0
        assert bomb["status"] == torn["status"] == "unjudged"
        assert bomb["error"]["detail"].startswith("bomb.jpg: decoding it takes more than the 1 s")
        assert "not a readable image" in torn["error"]["detail"]
        assert client.metrics("vaegis_decoders_lost_total")['{reason="time"}'] >= 1
        form = multipart([("bomb.jpg", jpeg_of_scans(20_000))])
        status, problem = client.score("image", *form, query="?deadline_ms=100")
        assert status == 504 and "deadline_ms" in problem["detail"], problem
        status, problem = client.score("image", *multipart([("bomb.png", png_of_zeros(9000))]))
        assert status == 422 and "50000000" in problem["detail"], problem
        assert client.score("image", *multipart([("a.png", good)]))[1]["results"][0]["score"] == 100.0
    assert children() == []


def test_drafts_are_the_same_wherever_the_file_is_read(decoders):
    """A JPEG 16 times as large as the graph's input is decoded at a quarter of its size, here and by a decoder."""
    spec = ImageSpec(height=32, width=32, channels=3, fit="resize", draft=True)
    y, x = np.mgrid[:512, :512]
    wave = np.stack([127 + 90 * np.sin(x / 40), 127 + 90 * np.sin(y / 60), (x + y) / 4.02], -1).astype(np.uint8)
    data = encoded(wave, "JPEG", quality=90)
    (here,) = read_here([data], spec, LIMITS)
    (there,) = decoders().read([data], spec, LIMITS)
    (whole,) = read_here([data], ImageSpec(height=32, width=32, channels=3, fit="resize"), LIMITS)
    assert np.array_equal(here, there)
    assert not np.array_equal(here, whole) and np.abs(here.astype(int) - whole).max() <= 2


def test_json_of_the_answer_holds_no_path(fill, tmp_path):
    with serving(fill(tmp_path / "home")) as client:
        status, problem = client.score("image", *multipart([("x.png", b"\x89PNG\r\n\x1a\n" + bytes(50))]))
    assert status == 422 and "site-packages" not in json.dumps(problem)
    with pytest.raises(Refusal):
        from_files(SMALL, [])
