import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from toy_bundles import VECTOR, toy_bundle
from vaegis.models.errors import Conflict, Damaged, NotFound, Refusal
from vaegis.service.settings import Settings
from vaegis.service.store import database
from vaegis.service.store.registry import Registry, check_name
from vaegis.service.store.schema import StoreTable


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request, tmp_path):
    """Settings of a home whose store is empty."""
    if request.param == "sqlite":
        return Settings(home=tmp_path / "home")
    return Settings(home=tmp_path / "home", store_url=request.getfixturevalue("server").store())


def on_sqlite(test):
    """Marks what is about SQLite's file."""
    return pytest.mark.parametrize("settings", ["sqlite"], indirect=True)(test)


@pytest.fixture
def registry(settings):
    registry = Registry.open(settings)
    yield registry
    registry.close()


def test_migrations_make_the_tables_that_the_code_speaks_of(registry, settings):
    engine = create_engine(settings.database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), StoreTable.metadata) == []
        if engine.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    engine.dispose()
    config = Config()
    config.set_main_option("script_location", str(database.Path(database.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == database.HEAD


def test_first_version_is_promoted_and_the_same_bundle_keeps_its_version(registry, settings, tmp_path):
    bundle = toy_bundle(tmp_path / "a")
    first = registry.add("line-3", tmp_path / "a", by="ann")
    assert (first.version, first.promoted, first.known) == (1, True, False)
    again = registry.add("line-3", tmp_path / "a")
    assert (again.version, again.promoted, again.known) == (1, False, True)
    toy_bundle(tmp_path / "b", doc="second")
    second = registry.add("line-3", tmp_path / "b", move=True)
    assert (second.version, second.promoted) == (2, False)
    assert not (tmp_path / "b").exists()
    found = registry.resolve("line-3")
    assert (found.version, found.digest, found.path) == (1, bundle.digest, settings.bundles / bundle.digest)
    assert registry.resolve("line-3@2").digest == second.digest
    assert registry.resolve("line-3@champion").version == 1
    # The same bundle under another name shares its folder and starts at 1 there.
    assert registry.add("other", tmp_path / "a").version == 1
    assert sorted(p.name for p in settings.bundles.iterdir()) == sorted({first.digest, second.digest})


def test_a_damaged_copy_is_replaced_by_a_whole_one(registry, settings, tmp_path):
    bundle = toy_bundle(tmp_path / "a")
    registry.add("m", tmp_path / "a")
    (settings.bundles / bundle.digest / "score.onnx").write_bytes(b"rotten")
    registry.add("m", tmp_path / "a")
    assert (settings.bundles / bundle.digest / "score.onnx").read_bytes() == (tmp_path / "a/score.onnx").read_bytes()
    assert [p.name for p in settings.bundles.iterdir()] == [bundle.digest]


def test_a_damaged_bundle_is_not_registered(registry, settings, tmp_path):
    toy_bundle(tmp_path / "a")
    (tmp_path / "a" / "score.onnx").write_bytes(b"rotten")
    with pytest.raises(Damaged, match="score.onnx"):
        registry.add("m", tmp_path / "a")
    assert registry.list() == ()
    assert not settings.bundles.exists()


def test_promotion_and_rollback_follow_the_log(registry, tmp_path):
    for i in range(3):
        toy_bundle(tmp_path / str(i), doc=str(i))
        registry.add("m", tmp_path / str(i), by="ann")
    registry.promote("m", 2, by="bob")
    registry.promote("m", "3", by="bob")
    assert registry.promote("m", 3).from_version == 3  # there already: nothing is logged
    assert registry.rollback("m", by="eve").to_version == 2
    assert registry.rollback("m").to_version == 1
    with pytest.raises(Conflict, match="version 1"):
        registry.rollback("m")
    registry.promote("m", 3, alias="canary")
    assert registry.resolve("m@canary").version == 3
    assert registry.promote("m", "canary").to_version == 3
    log = registry.show("m").promotions
    assert [(p.action, p.from_version, p.to_version) for p in log if p.alias == "champion"] == [
        ("promote", None, 1), ("promote", 1, 2), ("promote", 2, 3), ("rollback", 3, 2), ("rollback", 2, 1),
        ("promote", 1, 3),
    ]  # fmt: skip
    assert registry.show("m").promotions[1].by == "bob"
    with pytest.raises(Conflict):
        registry.rollback("m", alias="canary")


def test_what_is_not_there_is_named_with_what_is(registry, tmp_path):
    with pytest.raises(NotFound, match="none is registered"):
        registry.resolve("m")
    toy_bundle(tmp_path / "a")
    for i in range(12):
        registry.add(f"m{i:02d}", tmp_path / "a")
    with pytest.raises(NotFound, match=r"'nope'; there is m00, .*m09 and 2 more"):
        registry.resolve("nope")
    with pytest.raises(NotFound, match=r"m00 has no version '7'; it has 1"):
        registry.resolve("m00@7")
    with pytest.raises(NotFound, match=r"m00 has no alias 'gold'; it has champion"):
        registry.resolve("m00@gold")
    with pytest.raises(NotFound, match="99999999999999999999"):
        registry.resolve("m00@99999999999999999999")
    with pytest.raises(NotFound):
        registry.resolve("m00@")
    with pytest.raises(Refusal, match="version"):
        registry.promote("m00", 1, alias="12")


@pytest.mark.parametrize("name", ["Bad Name!", "", "-x", "a/b", "..", "a" * 64, "ä", "a\n"])
def test_names_that_cannot_be(name):
    with pytest.raises(Refusal, match="name"):
        check_name(name)


def test_two_processes_open_and_register_at_once(settings, tmp_path):
    """Four processes make the same store and register four bundles under one name: versions 1 to 4, one champion."""
    for i in range(4):
        toy_bundle(tmp_path / str(i), VECTOR, doc=str(i))
    code = (
        "import sys; from pathlib import Path; from vaegis.service.settings import Settings\n"
        "from vaegis.service.store.registry import Registry\n"
        "r = Registry.open(Settings(home=Path(sys.argv[1]), store_url=sys.argv[3]))\n"
        "print(r.add('m', Path(sys.argv[2])).version)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, settings.home, tmp_path / str(i), settings.store_url],
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    assert sorted(int(p.communicate(timeout=120)[0]) for p in running) == [1, 2, 3, 4]
    registry = Registry.open(settings)
    assert len(registry.show("m").versions) == 4
    assert len(registry.show("m").promotions) == 1
    registry.close()


@on_sqlite
def test_a_store_that_is_no_database(settings):
    settings.home.mkdir()
    (settings.home / "vaegis.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(Damaged, match="backup"):
        Registry.open(settings)


def test_a_store_of_a_newer_version(registry, settings):
    engine = create_engine(settings.database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(Refusal, match="Upgrade"):
        Registry.open(settings)


def test_a_database_that_is_not_there_is_said_in_a_sentence(server, tmp_path):
    with pytest.raises(Refusal, match="store cannot be used") as found:
        url = server.url.replace("vaegis@", "vaegis:secret@") + "none"
        Registry.open(Settings(home=tmp_path / "home", store_url=url))
    assert "none" in str(found.value) and "secret" not in str(found.value)


def test_a_home_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Refusal, match="VAEGIS_HOME"):
        Registry.open(Settings(home=tmp_path / "file"))
    with pytest.raises(Refusal, match="VAEGIS_STORE_URL"):
        Registry.open(Settings(home=tmp_path, store_url="nonsense"))
