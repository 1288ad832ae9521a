"""Everything that can be set from outside, read once and passed on as an argument.

Each setting is an environment variable `VAEGIS_<NAME>`; options of a command win over it. `documented` lists them all,
and a test holds docs/operations.md to that list.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_data_path
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from vaegis.models.errors import Refusal

PREFIX = "VAEGIS_"


class Settings(BaseSettings):
    """The settings of one process."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    home: Path = Field(
        default_factory=lambda: user_data_path("vaegis", appauthor=False),
        description="Folder that holds the store and the registered bundles; made when it is not there.",
    )
    store_url: str = Field(
        default="",
        description="SQLAlchemy URL of the store, such as postgresql+psycopg://...; empty means SQLite in the home.",
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address the service listens on; any other than loopback needs a key to exist.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port the service listens on; 0 takes a free one.")
    workers: int = Field(
        default=1, ge=1, le=256, description="Processes that answer on the port; each opens the models for itself."
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto",
        description="Where graphs run: cuda is strict, auto takes CUDA where it works and says when it does not.",
    )
    cuda_graphs: bool = Field(
        default=True, description="On a GPU, record each batch size once and replay it, where the model allows that."
    )
    tensorrt: bool = Field(
        default=False,
        description="On a GPU, run graphs by TensorRT, which must be installed; its engines are kept in the home.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="CPU threads of one graph call; 0 means one, and several calls share the cores.",
    )
    concurrency: int = Field(
        default=4, ge=1, le=1024, description="Large bodies decoded at the same time, files aside; the others wait."
    )
    queue_samples: int = Field(
        default=8192, ge=1, description="Samples that may wait or be scored; beyond it requests get a 429."
    )
    queue_bytes: int = Field(
        default=256 * 2**20,
        ge=1,
        description="Bytes of bodies, and of the samples in them, that may wait or be scored; beyond it a 429.",
    )
    open_seconds: float = Field(
        default=60.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a version's graphs may take to open and to answer for the first time; a version that "
        "takes longer is refused.",
    )
    model_bytes: int = Field(
        default=2 * 2**30,
        ge=1,
        description="Memory that open versions may take together, in bytes, as estimated; the least recently used are "
        "closed beyond that.",
    )
    max_body_bytes: int = Field(default=64 * 2**20, ge=1, description="Largest request body, in bytes; more is a 413.")
    max_samples: int = Field(default=65_536, ge=1, description="Most samples in one request; more is a 413.")
    max_array_bytes: int = Field(
        default=256 * 2**20, ge=1, description="Largest request once its samples are decoded, in bytes; more is a 413."
    )
    max_pixels: int = Field(
        default=50_000_000, ge=1, description="Most pixels of one image, checked before it is decoded."
    )
    max_answer_bytes: int = Field(
        default=256 * 2**20, ge=1, description="Largest answer, in bytes, as far as its maps make it; more is a 413."
    )
    decoders: int = Field(
        default=2,
        ge=0,
        le=64,
        description="Processes that decode images, started when the first one comes; 0 decodes in the service itself.",
    )
    decoder_memory_bytes: int = Field(
        default=1280 * 2**20, ge=2**20, description="Memory that decoding one image may take, in bytes."
    )
    decode_seconds: int = Field(default=10, ge=1, description="Seconds that decoding one image may take.")
    rate: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Samples a second for a key without a rate of its own, and for callers without a key; 0 sets no "
        "bounds.",
    )
    tls_cert: str = Field(
        default="", description="File of the certificate chain (PEM); with VAEGIS_TLS_KEY the service speaks https."
    )
    tls_key: str = Field(
        default="", description="File of the certificate's private key (PEM), without a password; 0600 is best."
    )
    connections: int = Field(
        default=1000, ge=1, description="Connections open at a time; further ones are answered 503 and closed."
    )
    header_seconds: float = Field(
        default=10.0, gt=0, allow_inf_nan=False, description="Seconds a client gets to send the head of a request."
    )
    body_seconds: float = Field(
        default=300.0, gt=0, allow_inf_nan=False, description="Seconds a client gets to send a body; more is a 408."
    )
    body_bytes_per_second: float = Field(
        default=1000.0,
        ge=0,
        allow_inf_nan=False,
        description="Least bytes a second, in the mean, at which a client must send its body and read its answer.",
    )
    keep_alive_seconds: int = Field(
        default=75,
        ge=1,
        description="Seconds a connection stays open between requests; keep it longer than a proxy in front does.",
    )
    shutdown_seconds: int = Field(
        default=30, ge=0, description="Seconds that accepted requests get to finish after SIGTERM or Ctrl+C."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe messages that are logged."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="Log lines for people (console) or one JSON object per line (json)."
    )
    debug: bool = Field(
        default=False, description="Show the whole trace when a command fails unexpectedly; not needed otherwise."
    )

    @property
    def database_url(self) -> str:
        """The store's URL, the SQLite default filled in."""
        return self.store_url or f"sqlite:///{self.home / 'vaegis.sqlite'}"

    @property
    def lanes(self) -> int:
        """Graph calls of one version at the same time, so that all workers together use the cores that there are."""
        return max(1, _cores() // (self.threads or 1) // self.workers)

    @property
    def bundles(self) -> Path:
        """The folder of registered bundles, each under its digest."""
        return self.home / "bundles"


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_settings(**options: Any) -> Settings:
    """The settings from the environment, with a command's own options over them; None leaves an option out.

    Raises:
        Refusal: a value that its setting cannot take.
    """
    try:
        return Settings(**{k: v for k, v in options.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        what = PREFIX + name.removeprefix(PREFIX.lower()).upper()
        hint = ""
        if what == "VAEGIS_PORT" and str(first["input"]).startswith("tcp://"):
            hint = " Kubernetes made this variable for a service named vaegis: set enableServiceLinks to false."
        raise Refusal(f"The setting {what} cannot be {first['input']!r}: {first['msg']}.{hint}") from None


def documented() -> list[tuple[str, str, str]]:
    """Of each setting: environment variable, default as text, meaning."""
    rows = []
    for name, field in Settings.model_fields.items():
        if name == "home":
            default = "the user's data folder"
        else:
            default = str(field.default) if field.default != "" else "(empty)"
        rows.append((PREFIX + name.upper(), default, str(field.description)))
    return rows
