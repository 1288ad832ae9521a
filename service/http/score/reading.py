"""The body of a scoring request -> samples, by its content type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import orjson

from vaegis.models import inputs
from vaegis.models.blocks import Block
from vaegis.models.errors import Malformed, Refusal, UnsupportedType
from vaegis.models.inputs.options import Limits
from vaegis.models.sources.options import listed
from vaegis.service.http import multipart
from vaegis.service.serving.served import Served


@dataclass(frozen=True)
class Body:
    """A request's body and what is needed to read it."""

    content_type: str  # the whole header
    raw: bytes
    limits: Limits
    images: inputs.Reader  # what decodes them


Form = Callable[[Served, Body], Block]


def _json(served: Served, body: Body) -> Block:
    try:
        data = orjson.loads(body.raw)
    except orjson.JSONDecodeError as error:
        raise Malformed(
            f'The body is not JSON: {error}. Send {{"data": [...]}} with finite numbers; NaN and Infinity are no JSON.'
        ) from error
    if not isinstance(data, dict):
        raise Malformed('The JSON body is no object; send {"data": [...]}.')
    truths = b"e" in body.raw  # as both words do; one letter is looked for many times faster
    return inputs.from_json(served.scorer.spec, data, roi=served.scorer.bundle.roi, limits=body.limits, truths=truths)


def _raw(served: Served, body: Body) -> Block:
    return inputs.from_raw(served.scorer.spec, body.raw, roi=served.scorer.bundle.roi, limits=body.limits)


def _npy(served: Served, body: Body) -> Block:
    return inputs.from_npy(served.scorer.spec, body.raw, roi=served.scorer.bundle.roi, limits=body.limits)


def _arrow(served: Served, body: Body) -> Block:
    return inputs.from_arrow(served.scorer.spec, body.raw, limits=body.limits)


def files(served: Served, body: Body) -> Block:
    """The samples of a form's files."""
    uploads = multipart.files(body.content_type, body.raw, body.limits.samples)
    spec, roi = served.scorer.spec, served.scorer.bundle.roi
    return inputs.from_files(spec, uploads, roi=roi, limits=body.limits, reader=body.images)


FORMS: dict[str, Form] = {
    "multipart/form-data": files,
    "application/json": _json,
    "application/octet-stream": _raw,
    "application/x-npy": _npy,
    "application/vnd.apache.arrow.stream": _arrow,
}


def declare(served: Served, block: Block, condition: str | None) -> Block:
    """The block with the query's condition for every sample, where the model takes conditions.

    Raises:
        Refusal: none is given, or both the query and the body give one; the model does not know it.
    """
    spec = served.scorer.spec
    if condition is not None:
        if block.conditions is not None:
            raise Refusal('Both the query and the body give a "condition"; leave one of them out.')
        inputs.number_of(spec, condition)
        return inputs.declare(block, spec, [condition] * len(block))
    if spec.conditions and block.conditions is None:
        raise Refusal(
            f"The model was fitted with conditions ({listed(spec.conditions, 20)}). Add ?condition=NAME for all "
            'samples of the request, or in JSON "condition": [...], one per sample.'
        )
    return block


def form_of(content_type: str, encoding: str) -> Form:
    """What reads bodies of a content type.

    Raises:
        UnsupportedType: nothing does, or the body is compressed.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in FORMS:
        given = f"The content type {kind[:70]!r} is not one that" if kind else "The request has no Content-Type that"
        raise UnsupportedType(f"{given} can be scored; send one of {', '.join(FORMS)}.")
    if encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedType(f"The content encoding {encoding[:70]!r} is not read here; send the body as it is.")
    return FORMS[kind]
