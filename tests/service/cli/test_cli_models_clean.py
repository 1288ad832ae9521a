"""Clean samples for a version made of a bundle: what it does not take is named by what it holds."""

import numpy as np
import pytest

from toy_bundles import IMAGE, VECTOR, toy_bundle

COMMANDS = [("half", "{source}", "--model", "m"), ("recalibrate", "m", "--clean", "{source}")]


@pytest.mark.parametrize("command", COMMANDS, ids=["half", "recalibrate"])
@pytest.mark.parametrize(
    ("spec", "name", "sentence"),
    [
        (IMAGE, "table.csv", "table.csv holds tables, but the model takes images; give it those."),
        (VECTOR, "images.npy", "images.npy"),
    ],
    ids=["table", "images"],
)
def test_a_source_of_another_kind_is_named_by_what_it_holds(vaegis, refused, tmp_path, command, spec, name, sentence):
    bundle = toy_bundle(tmp_path / "bundle", spec)
    (tmp_path / "table.csv").write_text("a,b,c\n" + "1,2,3\n" * 30)
    np.save(tmp_path / "images.npy", np.zeros((30, 4, 4), np.uint8))
    assert vaegis("models", "import", bundle.path, "--name", "m").code == 0
    result = refused("models", *(word.format(source=tmp_path / name) for word in command), words=[sentence])
    assert "--kind" not in result.said
