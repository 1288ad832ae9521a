"""docs/what-is-wrong.md against the source: every sentence that it quotes is one that the product can say."""

import ast
import re
from functools import cache

import pytest
from doc_pages import ROOT, page, rows

LEAST, ENOUGH = 12, 25  # characters that do not change: of a text to look at, of a sentence to be known
QUOTED = [row[1] for row in rows(page("what-is-wrong.md"), "you see") if row[1] != "–"]


@cache
def texts():
    """Each text of the source as its pieces between the braces, whose values are not known."""
    collection = []
    for package in ("models", "training", "service"):
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text("utf-8"))
            parts_of_others = {id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    collection.append([v.value for v in node.values if isinstance(v, ast.Constant)])
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts_of_others:
                    collection.append(node.value.split("%s"))
    # Marks of colour such as [yellow] are not printed.
    plain = [[re.sub(r"\[(?:/|bold|yellow)\]", "", piece).strip(". ") for piece in pieces] for pieces in collection]
    return [pieces for pieces in plain if sum(map(len, pieces)) >= LEAST]


@pytest.mark.parametrize("sentence", QUOTED)
def test_a_quoted_sentence_is_one_of_the_product(sentence):
    """Most of it stands word for word, and in order, in one text of the source."""
    best = max(coverage(pieces, sentence) for pieces in texts())
    assert best >= min(ENOUGH, 0.3 * len(sentence)), sentence


def coverage(pieces, sentence):
    """Characters of the sentence that a text's pieces make up; 0 where one is not there, or not in order."""
    at = 0
    for piece in pieces:
        start = sentence.find(piece, at)
        if start < 0:
            return 0
        at = start + len(piece)
    return sum(map(len, pieces))
