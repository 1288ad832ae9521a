"""What the numbers mean, in sentences: the verdict on a fit, and what a person should look at before trusting it."""

from __future__ import annotations

import math

from vaegis.training.report.contents import Caution, Report

NOUNS = {"image": ("image", "images"), "series": ("window", "windows"), "vector": ("row", "rows")}

HEAVY = 0.4  # tail shape xi from which a single sample dominates the extrapolation
DRIFT = 0.001  # p-value under which validate and calibrate are said to differ
FALLING = 0.03  # of the loss's whole fall, in the last quarter of the fit
MEMORISED = 1.5  # median reconstruction error of unseen over that of fitted samples
VARIED = 0.2  # share of five principal components from which clean samples are said to differ by more than noise
UNLEARNED = 1 / 3  # of that share, under which the model is said to have learned nothing
BLIND = 0.1  # share of the best-seen synthetic defect, under which the model is said to see hardly anything
FEW = 99  # independent calibration samples that a rate of 1 % takes

ALIKE = "That is right where clean samples differ by no more than noise, and only there."


def percent(share: float) -> str:
    """`0.05 %`, to two significant digits."""
    return f"{float(f'{100 * share:.2g}'):g} %"


def number(value: float | None, digits: int = 4) -> str:
    """A number for reading, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def verdict(report: Report) -> list[str]:
    """What the model is, in a few sentences."""
    singular, plural = NOUNS[report.input["kind"]]
    counts, decision = report.samples, report.decision
    calibrate = counts.calibrate
    independent = "" if counts.independent == calibrate else f", worth {counts.independent} that do not overlap"
    sentences = [
        f"{report.name} learned what clean product looks like from {counts.read} clean {plural} "
        f"({report.input['description']}): {counts.fit} to fit the model, {counts.validate} to decide when to stop "
        f"and how to combine the evidence, and {calibrate} that it never saw, to calibrate{independent}."
    ]
    alpha, article = decision.alpha, "an" if singular[0] in "aeiou" else "a"
    if alpha is not None:
        assert decision.interval is not None
        low, high = decision.interval
        sentences.append(
            f"It calls {article} {singular} anomalous when its {decision.decide_by} exceeds "
            f"{number(decision.threshold)}. Of clean {plural} like these, {percent(alpha)} are then expected to be "
            f"called so by mistake: about one in {round(1 / alpha)}."
        )
        if decision.extrapolated:
            sentences.append(
                f"That threshold is extrapolated: {counts.independent} independent clean {plural} can measure a rate "
                f"of {percent(decision.lowest_measured_alpha)} and no lower."
            )
        else:
            sentences.append(
                f"As {counts.independent} independent {plural} set it, this model's own long-run rate lies between "
                f"{percent(low)} and {percent(high)} with 99 % confidence."
            )
    lowest, measured = decision.lowest_alpha, decision.lowest_measured_alpha
    beyond = f", extrapolated below {percent(measured)}" if lowest < measured else ""
    sentences.append(f"The lowest false-alarm rate that can be asked for is {percent(lowest)}{beyond}.")
    if decision.groups:
        sentences.append(
            f"{len(decision.groups)} groups are calibrated apart: a {singular} that names its group is held against "
            "that group's clean ones. What is said here is of all together."
        )
    return sentences


def warnings(report: Report, falling: float) -> list[Caution]:
    """What a person should know before trusting the model, worst first."""
    cautions = [*_latent(report), *_fit(report, falling), *_calibration(report), *_trials(report), *_generation(report)]
    if skipped := report.samples.skipped:
        text = f"{skipped} items of the source could not be read and were left out."
        cautions.append(Caution("skipped", "note", text))
    order = ("alarm", "warning", "note")
    return sorted(cautions, key=lambda caution: order.index(caution.level))


def _latent(report: Report) -> list[Caution]:
    latent, repeated = report.latent, report.reconstruction
    if latent is None:
        return []
    active, size = latent.active, latent.size
    varied = repeated is not None and repeated.linear > VARIED
    if active == 0:
        text = f"Posterior collapse: none of the {size} latent units tells samples apart, so every sample is "
        if repeated is not None and not varied:
            return [Caution("posterior_collapse", "warning", text + "reconstructed alike. " + ALIKE)]
        text += "reconstructed alike. Fit with a smaller beta (--set beta=0.1) or with free bits (--set free_bits=0.1)."
        return [Caution("posterior_collapse", "alarm", text)]
    if repeated is not None and varied and repeated.explained < UNLEARNED * repeated.linear:
        text = (
            f"The reconstructions repeat {percent(repeated.explained)} of what makes clean samples differ, where "
            f"five principal components would repeat {percent(repeated.linear)}: the model has not learned clean "
            "product. Fit for longer (--steps), or with a smaller beta (--set beta=0.1)."
        )
        return [Caution("not_learned", "alarm", text)]
    if repeated is not None and repeated.exact:
        return []
    if active == size:
        text = f"All {size} latent units are in use; a larger latent (--set latent={2 * size}) may describe clean "
        return [Caution("latent_full", "note", text + "product better.")]
    if active * 8 < size:
        text = (
            f"Only {active} of {size} latent units are in use. That is no fault where clean product varies little; "
            "if reconstructions look blurred below, fit with a smaller beta."
        )
        return [Caution("latent_sparse", "note", text)]
    return []


def _fit(report: Report, falling: float) -> list[Caution]:
    cautions = []
    stopped = report.training.stopped
    if falling > FALLING and stopped in ("steps", "time"):
        more = "--max-time" if stopped == "time" else "--steps"
        cautions.append(
            Caution(
                "still_falling",
                "warning",
                f"The loss was still falling when the fit ended: {percent(falling)} of its fall came in the last "
                f"quarter. Fit for longer ({more}).",
            )
        )
    error = report.terms.get("reconstruction_error")
    if error and error.fit.samples and error.calibrate.samples:
        ratio = (error.calibrate.median or 0.0) / max(error.fit.median or 0.0, 1e-12)
        if ratio > MEMORISED:
            cautions.append(
                Caution(
                    "memorised",
                    "warning",
                    f"Samples it never saw are reconstructed {ratio:.1f} times worse than those it was fitted on: it "
                    "has learned some of them by heart. More clean samples, declared invariances or a smaller latent "
                    "help.",
                )
            )
    return cautions


def _calibration(report: Report) -> list[Caution]:
    cautions = []
    tail, agree, counts = report.tail, report.agreement, report.samples
    if tail is not None and tail.shape > HEAVY:
        cautions.append(
            Caution(
                "heavy_tail",
                "warning",
                f"The scores of clean samples have a heavy tail (shape {tail.shape:.2f}): a few lie far beyond the "
                "rest. Look at the strangest clean samples below; if they are defects, take them out and fit again.",
            )
        )
    if agree.p_value < DRIFT:
        cautions.append(
            Caution(
                "drift",
                "warning",
                f"The two held-out parts of the clean data score differently (p = {agree.p_value:.1g}): clean "
                "product may have drifted or come in batches, and then the false-alarm rate will drift too. Group what "
                "belongs together (--group-by), or calibrate apart (--calibrate-by).",
            )
        )
    if counts.independent < FEW and not report.decision.extrapolated:  # the verdict says so already
        cautions.append(
            Caution(
                "few",
                "note",
                f"{counts.independent} independent samples calibrate it; {FEW} are needed to measure a rate of 1 %.",
            )
        )
    return cautions


def _generation(report: Report) -> list[Caution]:
    alarms = report.generation.alarms if report.generation is not None else ()
    return [Caution(alarm.code, "note", alarm.text) for alarm in alarms]


def _trials(report: Report) -> list[Caution]:
    trials = report.trials
    if not trials or trials[-1].found >= BLIND:
        return []
    best = trials[-1]
    return [
        Caution(
            "blind",
            "warning",
            f"Of synthetic defects made of its own clean samples it flags hardly any: at best {percent(best.found)} "
            f"({best.defect}: {best.says}). Clean samples may differ too much from each other, or hold defects; "
            "declare invariances, group kinds of product apart, or accept a higher false-alarm rate.",
        )
    ]
