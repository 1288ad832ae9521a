"""Registered bundles on disk, each in a folder named by its digest; shared by all names that it is registered under."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vaegis.models.bundle import Bundle, open_bundle
from vaegis.models.errors import Damaged, NotFound, Refusal
from vaegis.models.manifest import MANIFEST
from vaegis.models.outputs.atomic import hidden_folder, reason, sync_files, sync_folder


def keep(bundles: Path, bundle: Bundle, move: bool) -> None:
    """Puts a verified bundle under its digest: built aside and renamed, so that it is whole or not there.

    Args:
        bundles: the folder of all bundles.
        move: remove the given folder afterwards.

    Raises:
        Refusal: it cannot be written.
    """
    home = bundles / bundle.digest
    if _whole(home):
        if move and bundle.path.resolve() != home.resolve():
            shutil.rmtree(bundle.path)
        return
    try:
        bundles.mkdir(parents=True, exist_ok=True)
        with hidden_folder(bundles, bundle.digest) as aside:
            ready = aside / "bundle"
            for name in (*bundle.manifest.files, MANIFEST):
                (ready / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.path / name, ready / name)
            sync_files(ready)
            open_bundle(ready)
            if home.exists() and not _whole(home):  # a damaged copy: a whole one takes its place
                os.rename(home, aside / "damaged")
            try:
                os.rename(ready, home)
            except OSError:
                if not _whole(home):  # else another process was faster
                    raise
            sync_folder(bundles)
        if move:
            shutil.rmtree(bundle.path)
    except OSError as error:
        raise Refusal(
            f"The bundle cannot be kept in {bundles} ({reason(error)}); free space there, or set "
            "VAEGIS_HOME to a folder that can be written."
        ) from error


def _whole(home: Path) -> bool:
    try:
        open_bundle(home)
    except (NotFound, Damaged):
        return False
    return True
