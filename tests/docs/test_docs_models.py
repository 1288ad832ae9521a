"""docs/models.md against the families: each has a section of its own, with all its arguments and no other."""

import re

import pytest
from doc_pages import ROOT, code_spans, first_cells, page, rows, section

from vaegis.models.families import FAMILIES
from vaegis.models.families.family import keywords
from vaegis.models.spec import INVARIANCES

PAGE = page("models.md")


def own(family):
    """The section whose heading names the family, without sub-sections of others."""
    return section(PAGE, rf".*`{family}`.*")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_arguments_of_a_section_are_those_of_its_family(family):
    listing = [name for row in rows(own(family), "argument") for name in code_spans(row[0])]
    assert sorted(listing) == sorted(keywords(FAMILIES[family]))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_defaults_are_those_of_the_family(family):
    arguments = keywords(FAMILIES[family])
    for row in rows(own(family), "argument"):
        for name in code_spans(row[0]):
            default = arguments[name].default
            said = row[1].strip("`")
            if said.startswith("as for "):
                continue
            if isinstance(default, (int, float)):
                said = re.split(r"[:;, ]", said)[0]
                assert float(said) == default, f"{family} {name}"
            else:
                assert said == str(default), f"{family} {name}"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_is_listed(family):
    assert family in first_cells(section(PAGE, "Families"))
    assert family in first_cells((ROOT / "README.md").read_text("utf-8"))


def test_no_other_family_is_listed():
    assert set(first_cells(section(PAGE, "Families"))) == set(FAMILIES)


@pytest.mark.parametrize("kind", ["image", "vector"])
def test_every_evidence_term_is_documented(fitted, kind):
    listing = first_cells(own("vae"))
    assert [t for t in fitted("vae", kind).bundle.manifest.evidence if t not in listing] == []


def test_every_invariance_is_documented():
    known = {name for names in INVARIANCES.values() for name in names}
    table = rows(section(PAGE, "Declared invariances"))
    assert {name for row in table for name in code_spans(row[1])} == known
