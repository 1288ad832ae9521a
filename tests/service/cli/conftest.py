"""The command line, run in this process; and toy models for it."""

from dataclasses import dataclass

import pytest

from vaegis.service.cli import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str  # what a person sees on stdout
    err: str

    @property
    def said(self):
        return " ".join((self.out + " " + self.err).split())


@pytest.fixture
def vaegis(monkeypatch, capsys, tmp_path):
    """`vaegis("score", path, "--out", file)`, with a home of its own."""
    monkeypatch.setenv("VAEGIS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("VAEGIS_DEBUG", raising=False)

    def run(*args):
        monkeypatch.setattr("sys.argv", ["vaegis", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        found = capsys.readouterr()
        return Result(code, found.out, found.err)

    return run


@pytest.fixture
def refused(vaegis):
    """Runs a command that must fail with a sentence that holds every one of the words."""

    def run(*args, words, code=1):
        result = vaegis(*args)
        assert result.code == code, result
        assert "Traceback" not in result.said
        assert "unexpectedly" not in result.said, result.err
        for word in words:
            assert word.lower() in result.said.lower(), (word, result.said)
        return result

    return run


@pytest.fixture(scope="session")
def bundle(fitted):
    """`bundle("image")`: the folder of a fitted toy bundle."""

    def get(kind):
        return fitted("vae", kind).bundle.path

    return get
