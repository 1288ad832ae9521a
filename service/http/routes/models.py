"""Models: what there is, what a model takes, and which version answers."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from vaegis.models import spec as specs
from vaegis.models.calibration import ALL, Calibration, decide, smallest_alpha
from vaegis.models.errors import NotFound, Refusal
from vaegis.models.trial import try_bundle
from vaegis.service.http.access import Caller, admin
from vaegis.service.http.context import Service
from vaegis.service.http.problems import problems
from vaegis.service.store.promotions import Promotions
from vaegis.service.store.registry import CHAMPION, Model, Promotion
from vaegis.service.store.servings import Serving, Servings

ALPHAS = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)

Admin = Annotated[Caller, Depends(admin)]


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


class ServingOut(BaseModel):
    """How a model is served beside its champion."""

    loaded: bool = Field(description="Whether it answers; false after it was unloaded.")
    canary: int | None = Field(description="Version that answers a share of the champion's requests.", examples=[None])
    share: float = Field(description="The canary's share of requests.", examples=[0.0])
    shadow: int | None = Field(
        description="Version that scores the same traffic and is only compared.", examples=[None]
    )


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
    serving: ServingOut
    versions: list[VersionOut]
    promotions: list[PromotionOut]


class PromoteIn(BaseModel):
    """Which version an alias shall point at."""

    model_config = ConfigDict(extra="forbid")
    version: StrictInt | str = Field(description="A version's number, or an alias to follow.", examples=[2])
    alias: str = Field(default=CHAMPION, description="The alias to move.")
    override: StrictBool = Field(
        default=False, description="Promote a version that takes other samples than the champion."
    )


class RollbackIn(BaseModel):
    """Which alias shall go back."""

    model_config = ConfigDict(extra="forbid")
    alias: str = Field(default=CHAMPION, description="The alias to move.")


class CanaryIn(BaseModel):
    """Which version shall answer which share of the champion's requests."""

    model_config = ConfigDict(extra="forbid")
    version: StrictInt | str = Field(description="A version's number, or an alias.", examples=[2])
    share: float = Field(gt=0, lt=1, description="Of the requests that name no other version.", examples=[0.05])


class ShadowIn(BaseModel):
    """Which version shall score the champion's traffic too."""

    model_config = ConfigDict(extra="forbid")
    version: StrictInt | str = Field(description="A version's number, or an alias.", examples=[2])


class ShadowOut(BaseModel):
    """A champion and its shadow on the same samples, since the service started."""

    name: str
    champion: int
    shadow: int
    samples: int = Field(description="That both judged.", examples=[1000])
    agreement: float | None = Field(description="Share of these with the same verdict.", examples=[0.997])
    only_shadow: int = Field(description="Samples that only the shadow calls anomalous.")
    only_champion: int = Field(description="Samples that only the champion calls anomalous.")
    unjudged: int = Field(description="Samples that at least one of them could not judge.")
    dropped: int = Field(description="Samples that were not compared: the shadow was behind or could not score them.")
    rank_correlation: float | None = Field(
        description="Of the p-values of both scores: 1 where they order samples alike.", examples=[0.98]
    )


class Moved(BaseModel):
    """Where an alias points now."""

    name: str
    alias: str
    version: int
    previous: int | None


class Models:
    """The routes of one service; what each says of itself is shown on /docs."""

    def __init__(self, service: Service) -> None:
        self._service = service
        trial = partial(try_bundle, seconds=service.settings.open_seconds)
        self._promotions = Promotions(service.registry, trial, service.live.opener.open)

    def list_models(self) -> ModelList:
        """Every registered model with its champion."""
        return ModelList(models=[_summary(m) for m in self._service.registry.list()])

    def show_model(self, model: str) -> ModelDetail:
        """What a model takes, what its evidence means and how it is calibrated.

        `model` is `NAME` for its champion, `NAME@VERSION` or `NAME@ALIAS`.
        """
        served = self._service.live.get(model)
        record = self._service.registry.show(served.resolved.name)
        manifest, calibration = served.scorer.bundle.manifest, served.scorer.calibration
        whole = calibration.groups[ALL]
        return ModelDetail(
            name=record.name,
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
            aliases=record.aliases,
            serving=_serving(Servings(self._service.registry).of(record.name)),
            versions=[VersionOut.model_validate(v, from_attributes=True) for v in record.versions],
            promotions=[PromotionOut.model_validate(p, from_attributes=True) for p in record.promotions],
        )

    def promote(self, model: str, body: PromoteIn, caller: Admin) -> Moved:
        """Points an alias, `champion` if none is named, at a version. The version is tried and opened first, so that
        one that cannot be served, or that takes other samples than the champion, is not promoted, and the first request
        need not wait. Needs the scope `admin`."""
        _check_bare(model)
        moved = self._promotions.promote(model, body.version, body.alias, caller.name, body.override)
        self._service.live.look(now=True)
        return _moved(model, moved)

    def rollback(self, model: str, caller: Admin, body: RollbackIn | None = None) -> Moved:
        """Points an alias back at the version it had before; again for the one before that. Needs the scope `admin`."""
        moved = self._service.registry.rollback(model, (body or RollbackIn()).alias, caller.name)
        self._service.live.look(now=True)
        return _moved(model, moved)

    def set_canary(self, model: str, body: CanaryIn, caller: Admin) -> ServingOut:
        """A request is told apart by its `X-Request-ID`: the same id always gets the same version, and every answer
        names the one that gave it. The version is opened first. A promotion of the champion ends it. Needs the scope
        `admin`."""
        _check_bare(model)
        return self._set(self._promotions.canary(model, body.version, body.share, caller.name))

    def end_canary(self, model: str, caller: Admin) -> ServingOut:
        """The champion answers every request again. Needs the scope `admin`."""
        return self._set(Servings(self._service.registry).canary(model, None, by=caller.name))

    def set_shadow(self, model: str, body: ShadowIn, caller: Admin) -> ServingOut:
        """The version scores what the champion scores, after the answer was given; its verdicts are counted and never
        returned. It is opened first. A promotion of the champion ends it. Needs the scope `admin`."""
        _check_bare(model)
        return self._set(self._promotions.shadow(model, body.version, caller.name))

    def end_shadow(self, model: str, caller: Admin) -> ServingOut:
        """Only the champion scores again. Needs the scope `admin`."""
        return self._set(Servings(self._service.registry).shadow(model, None, caller.name))

    def show_shadow(self, model: str) -> ShadowOut:
        """Agreement, flips both ways and how alike both rank samples, over all workers since the service started."""
        route = Servings(self._service.registry).route(model)
        if route.shadow is None:
            raise NotFound(
                f"Model {route.main.name} has no shadow; set one with PUT /v1/models/{route.main.name}/shadow or "
                f"`vaegis models shadow {route.main.name}@VERSION`."
            )
        comparison = self._service.metrics.comparison(route.main, route.shadow)
        agree, flips = (
            comparison.samples["agree"],
            comparison.samples["only_shadow"] + comparison.samples["only_champion"],
        )
        return ShadowOut(
            name=route.main.name,
            champion=route.main.version,
            shadow=route.shadow.version,
            samples=agree + flips,
            agreement=agree / (agree + flips) if agree + flips else None,
            only_shadow=comparison.samples["only_shadow"],
            only_champion=comparison.samples["only_champion"],
            unjudged=comparison.samples["unjudged"],
            dropped=comparison.samples["dropped"],
            rank_correlation=comparison.rank_correlation,
        )

    def _set(self, serving: Serving) -> ServingOut:
        self._service.live.look(now=True)
        return _serving(serving)


def router(service: Service) -> APIRouter:
    """The routes, for the app."""
    does, routes = Models(service), APIRouter(prefix="/v1/models", tags=["Models"])
    get, post = partial(routes.add_api_route, methods=["GET"]), partial(routes.add_api_route, methods=["POST"])
    put, delete = partial(routes.add_api_route, methods=["PUT"]), partial(routes.add_api_route, methods=["DELETE"])
    changes = problems(400, 401, 403, 404, 413, 422, 503, 507)
    get("", does.list_models, summary="List the models", responses=problems(401, 503))
    get("/{model}", does.show_model, summary="Describe a model", responses=problems(401, 404, 422, 503))
    post(
        "/{model}/promote",
        does.promote,
        summary="Promote a version",
        responses=problems(400, 401, 403, 404, 409, 413, 422, 503, 507),
    )
    post(
        "/{model}/rollback",
        does.rollback,
        summary="Undo a promotion",
        responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
    )
    put("/{model}/canary", does.set_canary, summary="Let a version answer a share of requests", responses=changes)
    delete("/{model}/canary", does.end_canary, summary="End the canary", responses=changes)
    put("/{model}/shadow", does.set_shadow, summary="Compare a version on the same traffic", responses=changes)
    delete("/{model}/shadow", does.end_shadow, summary="End the shadow", responses=changes)
    get("/{model}/shadow", does.show_shadow, summary="How the shadow compares", responses=problems(401, 404, 422, 503))
    return routes


def _check_bare(model: str) -> None:
    if "@" in model:
        raise Refusal(f"{model[:70]!r} names one version; give the model's name alone, and the version in the body.")


def _serving(serving: Serving) -> ServingOut:
    return ServingOut(loaded=serving.loaded, canary=serving.canary, share=serving.share, shadow=serving.shadow)


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
    thresholds = []
    for alpha in sorted({*ALPHAS, own}, reverse=True):
        try:
            decision = decide(calibration, alpha)
        except Refusal:  # more than this model's calibration supports
            continue
        thresholds.append(Threshold(alpha=alpha, threshold=decision.threshold, extrapolated=decision.extrapolated))
    return thresholds
