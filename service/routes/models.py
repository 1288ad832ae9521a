"""Models: what there is, what a model takes, and which version answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from models import spec as specs
from models.calibration import ALL, Calibration, decide, smallest_alpha
from models.errors import Refusal
from service.auth import Caller, admin
from service.routes.problems import problems
from service.state import Service, service_of
from service.store.registry import CHAMPION, Model, Promotion

router = APIRouter(prefix="/v1/models", tags=["Models"])
ALPHAS = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)

Shared = Annotated[Service, Depends(service_of)]


class ModelSummary(BaseModel):
    """A model in the list."""

    name: str = Field(examples=["digits"])
    champion: int | None = Field(description="The version that answers when none is named.", examples=[2])
    versions: int = Field(description="How many there are.", examples=[2])
    kind: str = Field(description="`image`, `series` or `vector`.", examples=["image"])
    family: str = Field(examples=["vae"])
    aliases: dict[str, int] = Field(examples=[{"champion": 2}])


class ModelList(BaseModel):
    """Every model of the service."""

    models: list[ModelSummary]


class VersionOut(BaseModel):
    """One version of a model."""

    version: int
    digest: str = Field(description="Identity of its bundle: a sha256 over graphs, calibration and input spec.")
    family: str
    kind: str
    alpha: float = Field(description="False-alarm rate used when none is asked for.")
    training_digest: str | None = Field(description="Of the clean data it was fitted on.")
    fitted: str
    registered: datetime
    aliases: list[str]


class Threshold(BaseModel):
    """Where the line is drawn for a false-alarm rate."""

    alpha: float
    threshold: float = Field(description="A score above it is anomalous.")
    extrapolated: bool = Field(description="It lies beyond the clean samples, in their fitted tail.")


class CalibrationOut(BaseModel):
    """What the p-values stand on."""

    samples: int = Field(description="Held-out clean samples.")
    effective: int = Field(description="Independent ones: of a series, the windows that do not overlap.")
    smallest_alpha: float = Field(description="The lowest false-alarm rate that can be asked for.")
    groups: list[str] = Field(description="Groups that are calibrated apart; see the query parameter `group`.")


class PromotionOut(BaseModel):
    """One move of an alias."""

    alias: str
    action: str = Field(examples=["promote"])
    from_version: int | None
    to_version: int
    at: datetime
    by: str


class ModelDetail(BaseModel):
    """A model, seen through one of its versions."""

    name: str
    version: int = Field(description="The version described here.")
    digest: str
    kind: str
    family: str
    alpha: float
    input: dict[str, Any] = Field(description="What a sample is: size and depth, or columns and window.")
    input_summary: str = Field(examples=["24x24 images, 1 channel, 8 bit"])
    evidence: dict[str, str] = Field(description="Each evidence term and what it means; all can be decided by.")
    calibration: CalibrationOut
    thresholds: list[Threshold] = Field(description="Of the score, at usual false-alarm rates.")
    aliases: dict[str, int]
    versions: list[VersionOut]
    promotions: list[PromotionOut]


class PromoteIn(BaseModel):
    """Which version an alias shall point at."""

    model_config = ConfigDict(extra="forbid")
    version: int | str = Field(description="A version's number, or an alias to follow.", examples=[2])
    alias: str = Field(default=CHAMPION, description="The alias to move.")


class RollbackIn(BaseModel):
    """Which alias shall go back."""

    model_config = ConfigDict(extra="forbid")
    alias: str = Field(default=CHAMPION, description="The alias to move.")


class Moved(BaseModel):
    """Where an alias points now."""

    name: str
    alias: str
    version: int
    previous: int | None


@router.get("", summary="List the models", responses=problems(401, 503))
def list_models(service: Shared) -> ModelList:
    """Every registered model with its champion."""
    return ModelList(models=[_summary(m) for m in service.registry.list()])


@router.get("/{model}", summary="Describe a model", responses=problems(401, 404, 422, 503))
def show_model(model: str, service: Shared) -> ModelDetail:
    """What a model takes, what its evidence means and how it is calibrated.

    `model` is `NAME` for its champion, `NAME@VERSION` or `NAME@ALIAS`.
    """
    served = service.live.get(model)
    known = service.registry.show(served.resolved.name)
    manifest, calibration = served.scorer.bundle.manifest, served.scorer.calibration
    whole = calibration.groups[ALL]
    return ModelDetail(
        name=known.name,
        version=served.resolved.version,
        digest=served.resolved.digest,
        kind=served.scorer.spec.kind,
        family=manifest.family,
        alpha=manifest.alpha,
        input=specs.to_json(served.scorer.spec),
        input_summary=specs.describe(served.scorer.spec),
        evidence=manifest.evidence,
        calibration=CalibrationOut(
            samples=len(whole.terms["score"].values),
            effective=whole.effective,
            smallest_alpha=smallest_alpha(whole),
            groups=sorted(g for g in calibration.groups if g != ALL),
        ),
        thresholds=_thresholds(calibration, manifest.alpha),
        aliases=known.aliases,
        versions=[VersionOut.model_validate(v, from_attributes=True) for v in known.versions],
        promotions=[PromotionOut.model_validate(p, from_attributes=True) for p in known.promotions],
    )


@router.post("/{model}/promote", summary="Promote a version", responses=problems(400, 401, 403, 404, 413, 422, 503))
def promote(model: str, body: PromoteIn, service: Shared, caller: Annotated[Caller, Depends(admin)]) -> Moved:
    """Points an alias, `champion` if none is named, at a version. The version is opened first, so that one that cannot
    be served is not promoted and the first request need not wait. Needs the scope `admin`."""
    service.live.open(service.registry.resolve(f"{model}@{body.version}"))
    return _moved(model, service.registry.promote(model, body.version, body.alias, caller.name))


@router.post(
    "/{model}/rollback", summary="Undo a promotion", responses=problems(400, 401, 403, 404, 409, 413, 422, 503)
)
def rollback(
    model: str, service: Shared, caller: Annotated[Caller, Depends(admin)], body: RollbackIn | None = None
) -> Moved:
    """Points an alias back at the version it had before; again for the one before that. Needs the scope `admin`."""
    return _moved(model, service.registry.rollback(model, (body or RollbackIn()).alias, caller.name))


def _summary(model: Model) -> ModelSummary:
    champion = model.aliases.get(CHAMPION)
    shown = next((v for v in model.versions if v.version == champion), model.versions[-1])
    return ModelSummary(
        name=model.name,
        champion=champion,
        versions=len(model.versions),
        kind=shown.kind,
        family=shown.family,
        aliases=model.aliases,
    )


def _moved(name: str, p: Promotion) -> Moved:
    return Moved(name=name, alias=p.alias, version=p.to_version, previous=p.from_version)


def _thresholds(calibration: Calibration, own: float) -> list[Threshold]:
    found = []
    for alpha in sorted({*ALPHAS, own}, reverse=True):
        try:
            decision = decide(calibration, alpha)
        except Refusal:  # more than this model's calibration supports
            continue
        found.append(Threshold(alpha=alpha, threshold=decision.threshold, extrapolated=decision.extrapolated))
    return found
