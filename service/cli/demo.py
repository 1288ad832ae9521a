"""`vaegis demo`: the whole path on data that is at hand, as a person would walk it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    home: Annotated[
        Path | None,
        typer.Option("--home", metavar="DIR", help="Where the demo's data and models are kept; else VAEGIS_HOME."),
    ] = None,
    models_only: Annotated[
        bool, typer.Option("--models-only", help="Fit the two models where they are missing, and stop.")
    ] = False,
) -> None:
    """Fit two models, serve them, post real requests, and show what came back. Takes about two minutes.

    One model learns handwritten digits 0 to 3 (real scans, shipped with scikit-learn) and is shown 7, 8 and 9; the
    other learns a simulated pump and is shown a flow meter that drifts off. Everything is kept in the home.
    """
    from vaegis.service import fitting
    from vaegis.service.settings import read_settings

    fitting.demo(home if home is not None else read_settings().home, models_only)
