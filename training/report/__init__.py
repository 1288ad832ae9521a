"""The report of a fit: `report.json` for programs, a self-contained `report.html` for people.

`report.json` holds plain finite numbers, null where there is none. Its fields (format 1):

    format                 1; a change of meaning raises it, a new field does not
    name, family, arguments
    input                  the spec, and `description`
    evidence               {term: meaning}
    samples                read, skipped, fit, validate, calibrate; independent: of calibrate, without overlap
    decision               decide_by, alpha, threshold, extrapolated; interval: of the long-run rate, 99 %;
                           lowest_alpha, lowest_measured_alpha, threshold_5_percent (null: refused),
                           groups: {name: samples}
    training               as in the manifest: steps, best_step, stopped, seconds, parameters, seed, gate, digest (of
                           the clean data)
    history                [{step, loss terms, validate}] per epoch
    terms                  {term: {threshold: at the model's own rate, fit|validate|calibrate: {samples, mean, sd,
                           minimum, q05, median, q95, maximum}}}, `score` among them
    tail                   of the score: start, shape, scale, share; null where none could be fitted
    agreement              of validate with calibrate scores: Kolmogorov-Smirnov distance, p_value, validate, calibrate
    latent                 size, active, collapsed, samples, kl (nats), explained: [2] variance shares, units:
                           [{unit, kl, variance, active}]; null without an encoder
    reconstruction         of unseen samples: explained (share of clean variation that reconstructions repeat), linear
                           (share that five principal components do), samples, exact (the latent holds all of any
                           sample, clean or not, so that all of it comes back); null without a decoder
    likelihood             term, dimensions, per, log_jacobian, kind (discrete or differential), fit|validate|calibrate:
                           {elbo, nats_per_dimension, bits_per_dimension}; null for a family without nats
    trials                 [{defect, says, samples, found: share flagged at the model's own rate, auroc}] of synthetic
                           defects, least found first; null where clean samples are too few
    generation             samples, features (where they come from), generated and clean: {frechet, precision, recall,
                           density, coverage, spread, inception, diversity}, nearest, copies, rebuilt, alarms: [{code,
                           text}] of generated samples; null where there are none
    strangest, typical     [{item, index, row, score, p_value, worst_term, worst_side: high or low}]; index counts the
                           samples read from 0, row is a window's first; strangest first
    notes                  what was said during the fit
    warnings               [{code, level: alarm|warning|note, text}], worst first
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vaegis.training.report.contents import Report, to_json
from vaegis.training.report.facts import Facts
from vaegis.training.report.judgement import warnings
from vaegis.training.report.measurements import measure
from vaegis.training.report.numbers import numbers, settled
from vaegis.training.report.page import page
from vaegis.training.report.trials import trials

__all__ = ["Facts", "Rendering", "Report", "build"]


@dataclass(frozen=True)
class Rendering:
    """A report, and the files that show it."""

    report: Report
    files: Mapping[str, bytes]  # relative path -> bytes


def build(facts: Facts) -> Rendering:
    """Measures, judges and draws."""
    measurements, tried = measure(facts), trials(facts)
    report = numbers(facts, measurements, tried)
    report = replace(report, warnings=tuple(warnings(report, settled(facts))))
    text = json.dumps(to_json(report), indent=1, allow_nan=False)
    files = {
        "report/report.json": text.encode(),
        "report/report.html": page(facts, measurements, report, tried),
    }
    return Rendering(report, files)
