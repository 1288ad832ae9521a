"""Toy sources and toy models that several folders share: each model is fitted once a session, in seconds."""

import functools
import os

# Threads that wait by spinning make a fit of a tiny network many times slower on cores that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest

from toy_data import SMALL, WINDOW, defective, digits, pump, recipes, vectors, write_csv
from vaegis.models.inputs import InputOptions

STEPS = 60


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A folder with clean and test sources of every kind.

    `image.npz`, `series.csv` and `vector.npz` are clean; `NAME-test` hold 20 clean samples (series: 300 rows), then
    20 with a defect (series: 100 rows), and in the arrays `y` says which.
    """
    folder = tmp_path_factory.mktemp("sources")
    label = np.repeat([0, 1], 20)
    np.savez(folder / "image.npz", x=digits())
    bad = defective("image", 20)[..., 0]
    np.savez(folder / "image-test.npz", x=np.concatenate([digits(most=320)[300:], bad]), y=label)
    np.savez(folder / "vector.npz", x=vectors(400, 1))
    np.savez(folder / "vector-test.npz", x=np.concatenate([vectors(20, 3), defective("vector", 20)]), y=label)
    write_csv(folder / "series.csv", pump(1200, 1))
    write_csv(folder / "series-test.csv", pump(400, 2, fault=300))
    return folder


@pytest.fixture(scope="session")
def fitted(sources, tmp_path_factory):
    """`fitted(family, kind)`: what `vaegis.training.pipeline.run` made of the kind's clean source, fitted once."""
    from vaegis.training.pipeline import run
    from vaegis.training.request import FitOptions, Request

    folder = tmp_path_factory.mktemp("fitted")
    source = {"image": "image.npz", "series": "series.csv", "vector": "vector.npz"}

    @functools.cache
    def get(family, kind):
        request = Request(
            source=sources / source[kind],
            name="toy",
            out=folder / family / kind,
            work=folder / "work",
            family=family,
            arguments=SMALL.get(family, {}),
            shaping=InputOptions(window=WINDOW) if kind == "series" else InputOptions(),
            alpha=0.05,
            options=FitOptions(steps=STEPS, device="cpu"),
        )
        return run(request)

    return get


@pytest.fixture(scope="session")
def conditional(tmp_path_factory):
    """A conditional model of vectors made by recipes A and B, which its clean .npz names under the key c."""
    from vaegis.models.sources import SourceOptions
    from vaegis.training.pipeline import run
    from vaegis.training.request import FitOptions, Request

    folder = tmp_path_factory.mktemp("conditional")
    x = np.concatenate([recipes(250, "A", 1), recipes(250, "B", 2)])
    np.savez(folder / "clean.npz", x=x, c=np.repeat(["A", "B"], 250))
    request = Request(
        source=folder / "clean.npz",
        name="recipes",
        out=folder / "bundle",
        work=folder / "work",
        arguments={"width": 16, "latent": 2},
        reading=SourceOptions(condition="key:c"),
        alpha=0.05,
        options=FitOptions(steps=400, device="cpu"),
    )
    return run(request)
