"""What `vaegis.service.processes.supervisor` starts, with the socket, the lifeline and a number as arguments."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

from vaegis.models.errors import Refusal
from vaegis.service.metrics import SHARED
from vaegis.service.processes.supervisor import READY
from vaegis.service.processes.web import serve
from vaegis.service.settings import read_settings


def main(listening: int, lifeline: int, number: int) -> None:
    """Serves on an inherited socket."""
    try:
        ready = Path(os.environ[SHARED], READY)
        serve(read_settings(), socket.socket(fileno=listening), number, lifeline, lambda device: ready.touch())
    except Refusal as refusal:
        print(refusal, file=sys.stderr)  # noqa: T201 - a command's last words
        sys.exit(1)
    if os.getppid() == 1:  # nobody is left to do it
        shutil.rmtree(os.environ[SHARED], ignore_errors=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
