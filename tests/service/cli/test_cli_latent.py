"""encode, generate, interpolate, impute, purify, latent: on toy models whose answers are known."""

import numpy as np
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from toy_latents import IMAGE, RECIPES, SERIES, VECTOR, axes, bundle_of, coder_graphs, sampler
from vaegis.models.spec import ImageSpec

TILES = ImageSpec(16, 16, 1, tile=True, overlap=4)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """`toy("vector")`: a bundle's folder; also series, image, recipes, tiles, sampler, bare."""
    folder = tmp_path_factory.mktemp("latents")
    for name, spec in (
        ("vector", VECTOR),
        ("series", SERIES),
        ("image", IMAGE),
        ("recipes", RECIPES),
        ("tiles", TILES),
    ):
        bundle_of(folder / name, spec, coder_graphs(spec))
    bundle_of(folder / "bare", VECTOR, {})
    bundle_of(folder / "sampler", VECTOR, {"sampler.onnx": sampler(VECTOR, 4)})
    return lambda name: folder / name


@pytest.fixture
def vectors(tmp_path):
    z = np.random.default_rng(1).normal(size=(12, 2)).astype(np.float32)
    path = tmp_path / "v.npz"
    np.savez(path, x=z @ axes(VECTOR).T, y=np.repeat([0, 1], 6), c=np.repeat(["A", "B"], 6))
    return path, z


@pytest.fixture
def table(tmp_path):
    """A series of 20 rows whose every window the decoder can make nearly, with two gaps."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20, 2)).astype(np.float32)
    lines = ["speed,flow", *(f"{a},{b}" for a, b in x.tolist())]
    lines[6] = f"{x[5, 0]},"
    lines[10] = f",{x[9, 1]}"
    (tmp_path / "s.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "s.csv", x


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for i, name in enumerate(("a.png", "lot/b.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16), np.uint8)).save(folder / name)
    return folder


def read(path):
    return (pq.read_table(path) if path.suffix == ".parquet" else pc.read_csv(path)).to_pydict()


def ok(done):
    assert done.code == 0, done
    return done


def test_encode_gives_a_row_per_sample(vaegis, toy, vectors, tmp_path):
    path, z = vectors
    for out in (tmp_path / "z.parquet", tmp_path / "z.csv"):
        ok(vaegis("encode", path, "--bundle", toy("vector"), "--out", out))
        rows = read(out)
        found = np.array([rows["mean_0"], rows["mean_1"]]).T
        assert found == pytest.approx(z, abs=1e-4)
        assert set(rows["log_variance_1"]) == {-1.0}
        assert rows["item"] == ["v.npz"] * 12 and rows["index"] == list(range(12))


def test_encode_keeps_the_place_of_what_it_cannot_read(vaegis, toy, tmp_path):
    x = np.zeros((3, 4), np.float32)
    x[1, 2] = np.nan
    np.save(tmp_path / "v.npy", x)
    done = ok(vaegis("encode", tmp_path / "v.npy", "--bundle", toy("vector"), "--out", tmp_path / "z.parquet"))
    rows = read(tmp_path / "z.parquet")
    assert rows["mean_0"] == [0, None, 0] and "NaN" in rows["error"][1] and "1 of them unread" in done.said


def test_encode_takes_rows_of_a_series_and_tiles_of_an_image(vaegis, toy, table, tmp_path):
    path, x = table
    path.write_text(path.read_text().replace(",\n", ",0\n").replace("\n,", "\n0,"))
    ok(vaegis("encode", path, "--bundle", toy("series"), "--out", tmp_path / "z.parquet"))
    rows = read(tmp_path / "z.parquet")
    expected = x[16:20].reshape(-1) @ axes(SERIES)
    assert [rows["mean_0"][19], rows["mean_1"][19]] == pytest.approx(expected, abs=1e-4)
    assert rows["mean_0"][0] == rows["mean_0"][3] != rows["mean_0"][4]
    np.save(tmp_path / "big.npy", np.zeros((2, 28, 28), np.uint8))
    ok(vaegis("encode", tmp_path / "big.npy", "--bundle", toy("tiles"), "--out", tmp_path / "t.parquet"))
    assert read(tmp_path / "t.parquet")["part"] == [0, 1, 2, 3] * 2


def test_generate_in_every_form(vaegis, toy, tmp_path):
    ok(vaegis("generate", "--n", "5", "--bundle", toy("vector"), "--seed", "3", "--out", tmp_path / "g.npz"))
    z = np.random.default_rng(3).standard_normal((5, 2), np.float32)
    assert np.load(tmp_path / "g.npz")["x"] == pytest.approx(z @ axes(VECTOR).T, abs=1e-5)
    ok(vaegis("generate", "--n", "5", "--bundle", toy("vector"), "--seed", "3", "--out", tmp_path / "g.csv"))
    assert read(tmp_path / "g.csv")["b"] == pytest.approx((z @ axes(VECTOR).T)[:, 1].tolist(), abs=1e-4)
    ok(vaegis("generate", "--n", "3", "--bundle", toy("series"), "--out", tmp_path / "s.parquet"))
    assert read(tmp_path / "s.parquet")["index"] == [0] * 4 + [1] * 4 + [2] * 4
    ok(vaegis("generate", "--n", "3", "--bundle", toy("image"), "--out", tmp_path / "drawn"))
    assert [p.name for p in sorted((tmp_path / "drawn").iterdir())] == ["0000.png", "0001.png", "0002.png"]
    ok(vaegis("generate", "--n", "4", "--bundle", toy("sampler"), "--out", tmp_path / "p.npz"))
    assert np.load(tmp_path / "p.npz")["x"].shape == (4, 4)


def test_generate_under_a_condition(vaegis, toy, tmp_path):
    for name, level in (("A", 0), ("B", 10)):
        ok(
            vaegis(
                "generate", "--bundle", toy("recipes"), "--condition", name, "--n", "200", "--out", tmp_path / "g.npz"
            )
        )
        assert np.load(tmp_path / "g.npz")["x"].mean() == pytest.approx(level, abs=0.3)


def test_interpolate_walks_the_straight_line(vaegis, toy, vectors, tmp_path):
    path, z = vectors
    ok(vaegis("interpolate", f"{path}:2", f"{path}:7", "--steps", "5", "--bundle", toy("vector"), "--out",
              tmp_path / "i.npz"))  # fmt: skip
    expected = np.linspace(z[2], z[7], 5) @ axes(VECTOR).T
    assert np.load(tmp_path / "i.npz")["x"] == pytest.approx(expected, abs=1e-4)


def test_sums_of_samples(vaegis, toy, vectors, tmp_path):
    path, z = vectors
    ok(vaegis("interpolate", f"{path}:0", f"{path}:1", f"{path}:2", "--arith", "A-B+C", "--bundle", toy("vector"),
              "--out", tmp_path / "i.csv"))  # fmt: skip
    rows = read(tmp_path / "i.csv")
    assert rows["item"] == ["A", "B", "C", "sum"]
    assert rows["a"][-1] == pytest.approx(((z[0] - z[1] + z[2]) @ axes(VECTOR).T)[0], abs=1e-4)


def test_impute_a_table(vaegis, toy, vectors, tmp_path):
    path, _ = vectors
    x = np.load(path)["x"]
    lines = ["a,b,c,d", *(",".join(map(repr, row)) for row in x.tolist())]
    lines[4] = ",".join(["", *map(repr, x[3, 1:].tolist())])
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    done = ok(vaegis("impute", tmp_path / "t.csv", "--kind", "vector", "--bundle", toy("vector"), "--out",
                     tmp_path / "w.parquet"))  # fmt: skip
    rows = read(tmp_path / "w.parquet")
    found = np.array([rows[c] for c in "abcd"]).T
    assert found[3, 0] == pytest.approx(x[3, 0], abs=0.01)
    rest = np.ones(x.shape, bool)
    rest[3, 0] = False
    assert (found.astype(np.float32)[rest] == x[rest]).all()
    assert rows["imputed.a"] == [float(i == 3) for i in range(12)] and not any(rows["imputed.b"])
    assert "1 values filled in" in done.said


def test_impute_a_series(vaegis, toy, table, tmp_path):
    path, x = table
    ok(vaegis("impute", path, "--bundle", toy("series"), "--out", tmp_path / "w.parquet"))
    rows = read(tmp_path / "w.parquet")
    found = np.array([rows["speed"], rows["flow"]]).T.astype(np.float32)
    gap = np.zeros(x.shape, bool)
    gap[5, 1] = gap[9, 0] = True
    assert (found[~gap] == x[~gap]).all() and np.isfinite(found).all()
    assert np.array([rows["imputed.speed"], rows["imputed.flow"]]).T.astype(bool).tolist() == gap.tolist()


def test_impute_pixels(vaegis, toy, pictures, tmp_path):
    mask = np.zeros((16, 16), np.uint8)
    mask[4:8, 4:8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    ok(vaegis("impute", pictures, "--mask", tmp_path / "mask.png", "--bundle", toy("image"), "--out", tmp_path / "w"))
    for name in ("a.png", "lot/b.png"):
        before, after = (np.asarray(Image.open(f / name)) for f in (pictures, tmp_path / "w"))
        assert (before[mask == 0] == after[mask == 0]).all() and (before[mask > 0] != after[mask > 0]).any()
        assert (np.asarray(Image.open(tmp_path / "w" / "imputed" / name)) == mask).all()


def test_purify_gives_the_reconstruction_and_what_is_left(vaegis, toy, vectors, tmp_path):
    path, z = vectors
    x = np.load(path)["x"]
    x[:, 1] += 1.0
    np.save(tmp_path / "bad.npy", x)
    ok(vaegis("purify", tmp_path / "bad.npy", "--bundle", toy("vector"), "--out", tmp_path / "p.npz"))
    w = axes(VECTOR)
    found = np.load(tmp_path / "p.npz")
    assert found["x"] == pytest.approx(x @ w @ w.T, abs=1e-5)
    assert found["difference"] == pytest.approx(x - x @ w @ w.T, abs=1e-5)


def test_purify_pictures(vaegis, toy, pictures, tmp_path):
    ok(vaegis("purify", pictures, "--bundle", toy("image"), "--out", tmp_path / "p"))
    raw, clean, left = (
        np.asarray(Image.open(p)).astype(int)
        for p in (pictures / "a.png", tmp_path / "p" / "a.png", tmp_path / "p" / "difference" / "a.png")
    )
    assert (left == np.clip(raw - clean + 128, 0, 255)).all()


def test_purify_tiles_and_rows(vaegis, toy, table, tmp_path):
    np.savez(tmp_path / "big.npz", x=np.full((1, 28, 40), 90, np.uint8))
    ok(vaegis("purify", tmp_path / "big.npz", "--bundle", toy("tiles"), "--out", tmp_path / "p"))
    assert np.asarray(Image.open(tmp_path / "p" / "big.npz.0.png")).shape == (28, 40)
    path, _ = table
    path.write_text(path.read_text().replace(",\n", ",0\n").replace("\n,", "\n0,"))
    ok(vaegis("purify", path, "--bundle", toy("series"), "--out", tmp_path / "p.parquet"))
    assert len(read(tmp_path / "p.parquet")["difference.flow"]) == 20


def test_the_map(vaegis, toy, vectors, pictures, tmp_path):
    path, z = vectors
    done = ok(vaegis("latent", path, "--bundle", toy("vector"), "--labels", "key:y", "--traverse", "1,0", "--out",
                     tmp_path / "m"))  # fmt: skip
    assert "linear probe tells the 2 labels apart" in done.said
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"map.png", "map.parquet", "grid.png", "traverse.png"}
    rows = read(tmp_path / "m" / "map.parquet")
    assert rows["group"] == ["clean"] * 6 + ["anomalous"] * 6
    gaps = np.linalg.norm(np.array([rows["x"], rows["y"]]).T - [rows["x"][0], rows["y"][0]], axis=1)
    assert gaps == pytest.approx(np.linalg.norm(z - z[0], axis=1), abs=1e-3)  # two dimensions lose nothing
    with Image.open(tmp_path / "m" / "map.png") as picture:
        assert picture.size == (920, 720)
    ok(vaegis("latent", path, "--bundle", toy("recipes"), "--condition", "key:c", "--out", tmp_path / "r"))
    assert read(tmp_path / "r" / "map.parquet")["group"] == ["A"] * 6 + ["B"] * 6


NEEDS = [
    ("encode", "{v}", "--out", "{t}/z.parquet"),
    ("generate", "--out", "{t}/z.npz"),
    ("interpolate", "{v}:0", "{v}:1", "--out", "{t}/z.npz"),
    ("impute", "{v}", "--out", "{t}/z.parquet"),
    ("purify", "{v}", "--out", "{t}/z.parquet"),
    ("latent", "{v}", "--out", "{t}/m"),
]


def filled(words, vectors, tmp_path):
    return [w.format(v=vectors[0], t=tmp_path) for w in words]


@pytest.mark.parametrize("words", NEEDS, ids=lambda w: w[0])
def test_a_model_without_the_graphs_says_so(refused, toy, vectors, tmp_path, words):
    refused(*filled(words, vectors, tmp_path), "--bundle", toy("bare"), words=["family toy", "docs/models.md"])
    assert not list(tmp_path.glob("z.*")) and not (tmp_path / "m").exists()


@pytest.mark.parametrize("words", NEEDS, ids=lambda w: w[0])
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), ["--model", "--bundle"]),
        (("--model", "nosuch"), ["nosuch"]),
        (("--bundle", "/nosuch"), ["no bundle"]),
        (("--bundle", "{b}", "--device", "tpu"), ["tpu"]),
        (("--bundle", "{b}", "--condition", "is:A"), ["without conditions"]),
    ],
)
def test_wrong_models_are_refused(refused, toy, vectors, tmp_path, words, more, said):
    more = [m.format(b=toy("vector")) for m in more]
    refused(*filled(words, vectors, tmp_path), *more, words=said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("encode", "{v}", "--out", "{t}/z.txt"), [".txt", ".parquet"]),
        (("encode", "{v}", "--out", "{t}"), ["ends in nothing"]),
        (("encode", "{t}/nosuch.csv", "--out", "{t}/z.csv"), ["nothing at"]),
        (("generate", "--out", "{t}/z.jsonl"), [".jsonl"]),
        (("interpolate", "{v}:0", "--out", "{t}/z.npz"), ["1 samples", "two"]),
        (("interpolate", "{v}:0", "{v}:99", "--out", "{t}/z.npz"), ["no sample 99", "12"]),
        (("interpolate", "{v}", "{v}:1", "--out", "{t}/z.npz"), ["more than one", ":INDEX"]),
        (("interpolate", "{t}/no.npz:1", "{v}:1", "--out", "{t}/z.npz"), ["nothing at"]),
        (("interpolate", "{v}:0", "{v}:1", "--arith", "A-C", "--out", "{t}/z.npz"), ["names C", "A to B"]),
        (("interpolate", "{v}:0", "{v}:1", "--arith", "A/B", "--out", "{t}/z.npz"), ["no sum"]),
        (("impute", "{v}", "--mask", "{t}/m.png", "--out", "{t}/z.npz"), ["--mask goes with images"]),
        (("latent", "{v}", "--traverse", "7", "--out", "{t}/m"), ["2 latent numbers"]),
        (("latent", "{v}", "--traverse", "x", "--out", "{t}/m"), ["names no units"]),
        (("latent", "{v}", "--rows", "0:2", "--out", "{t}/m"), ["three at least"]),
        (("latent", "{v}", "--labels", "key:nosuch", "--out", "{t}/m"), ["nosuch"]),
        (("latent", "{v}", "--out", "{v}"), ["is a file"]),
        (("purify", "{v}", "--out", "{v}"), ["SOURCE itself"]),
    ],
)
def test_wrong_calls_are_refused(refused, toy, vectors, tmp_path, words, said):
    refused(*filled(words, vectors, tmp_path), "--bundle", toy("vector"), words=said)
    assert not (tmp_path / "m").exists()


def test_images_that_do_not_fit_are_refused(refused, toy, vectors, pictures, tmp_path):
    Image.new("L", (20, 16)).save(tmp_path / "wide.png")
    to = ("--bundle", toy("image"), "--out", tmp_path / "o")
    refused("interpolate", pictures / "a.png", tmp_path / "wide.png", *to, words=["wide.png", "16x20", "16x16"])
    refused("encode", vectors[0], "--bundle", toy("image"), "--out", tmp_path / "z.csv", words=["no image array"])
    refused("impute", pictures, *to, words=["--mask"])
    refused("impute", pictures, "--mask", tmp_path / "wide.png", *to, words=["16x20", "16x16"])
    refused("impute", pictures, "--mask", tmp_path / "no.png", *to, words=["no.png", "cannot be read"])
    Image.new("L", (16, 16), 255).save(tmp_path / "all.png")
    refused("impute", pictures, "--mask", tmp_path / "all.png", *to, words=["every pixel"])
    (tmp_path / "text.png").write_text("no picture")
    refused("impute", pictures, "--mask", tmp_path / "text.png", *to, words=["not a readable image"])
    refused("impute", pictures, "--mask", tmp_path / "all.png", "--bundle", toy("tiles"), "--out", tmp_path / "o",
            words=["tiles"])  # fmt: skip
    refused("generate", "--bundle", toy("image"), "--out", tmp_path / "o.csv", words=["cannot hold images"])


def test_conditions_are_asked_for_and_known(refused, toy, vectors, tmp_path):
    to = ("--bundle", toy("recipes"), "--out", tmp_path / "z.npz")
    refused("generate", *to, words=["--condition", "A, B"])
    refused("generate", "--condition", "C", *to, words=["'C'", "A, B"])
    refused("interpolate", f"{vectors[0]}:0", f"{vectors[0]}:1", *to, words=["--condition", "A, B"])
    refused("encode", vectors[0], "--bundle", toy("recipes"), "--out", tmp_path / "z.csv", words=["A, B"])
