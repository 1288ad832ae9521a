"""Likelihoods of the splits, in nats and, where the normalisation is known, in bits per dimension."""

from __future__ import annotations

from html import escape

from vaegis.training.report import charts
from vaegis.training.report.contents import Report
from vaegis.training.report.facts import Facts
from vaegis.training.report.judgement import number


def section(facts: Facts, report: Report) -> str:
    """The page's section, or nothing for a family without a likelihood."""
    likelihood = report.likelihood
    if likelihood is None:
        return ""
    bits = facts.log_jacobian is not None
    rows = []
    for split, means in (
        ("fit", likelihood.fit),
        ("validate", likelihood.validate),
        ("calibrate", likelihood.calibrate),
    ):
        cells = [split, number(means.elbo, 5), number(means.nats_per_dimension)]
        cells += [number(means.bits_per_dimension)] if bits else []
        rows.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    head = "ELBO" if likelihood.term == "negative_elbo" else charts.words(likelihood.term).removeprefix("negative ")
    text = f"Means per {likelihood.per} of {likelihood.dimensions} values, in nats of the normalised values. "
    if bits and likelihood.kind == "discrete":
        text += (
            f"Bits per dimension are of the raw whole numbers: the normalisation's log-Jacobian "
            f"({number(likelihood.log_jacobian)} nats) is added, and a whole number has the mass of a bin of width 1."
        )
    elif bits:
        text += (
            f"Bits per dimension are differential, of the raw values with the normalisation's log-Jacobian "
            f"({number(likelihood.log_jacobian)} nats): they depend on the units, and may be negative."
        )
    return (
        "<section><h2>Likelihood</h2><div class=wide><table><thead><tr><th>split</th>"
        f"<th>{escape(head)}, nats</th><th>negative, per value</th>{'<th>bits per dimension</th>' if bits else ''}"
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div><p class=small>{escape(text)}</p></section>"
    )
