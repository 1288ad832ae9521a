"""The service with its store on PostgreSQL, which is another machine's as far as it knows: it may change, or go."""

import numpy as np
from http_server import JSON, OCTETS, bearer, serving, until
from postgresql import postgresql

from vaegis.service.store.keys import Keys
from vaegis.service.store.registry import Registry

X = np.full((1, 4, 4, 1), 110, np.uint8).tobytes()


def test_what_another_process_writes_holds_within_a_second_or_two(server, fill, tmp_path):
    settings = fill(tmp_path / "home", server.store())
    with Registry.open(settings) as registry, serving(settings) as client:
        keys = Keys(registry.database)
        key, admin = keys.create("line", ["score"]), keys.create("boss", ["admin"])
        until(lambda: client.score("image", X, OCTETS)[0] == 401)
        status, answer = client.score("image", X, OCTETS, headers=bearer(key))
        assert (status, answer["version"], answer["results"][0]["score"]) == (200, 1, 100.0)
        registry.promote("image", 2)
        until(lambda: client.score("image", X, OCTETS, headers=bearer(key))[1]["version"] == 2)
        rolled = client.call("POST", "/v1/models/image/rollback", b"{}", JSON, bearer(admin))
        assert rolled[0] == 200
        assert registry.resolve("image").version == 1
        assert client.score("image", X, OCTETS, headers=bearer(key))[1]["version"] == 1
        keys.revoke(key.split("_")[1])
        until(lambda: client.score("image", X, OCTETS, headers=bearer(key))[0] == 401)


def test_a_store_that_goes_away_is_answered_503_and_comes_back(fill, tmp_path, server):
    with postgresql() as own:
        settings = fill(tmp_path / "home", own.store())
        with serving(settings) as client:
            assert client.score("image", X, OCTETS)[0] == 200
            own.stop()
            # Whether keys were made meanwhile cannot be known, so nobody is let in.
            until(lambda: client.score("image", X, OCTETS)[0] == 503)
            status, problem = client.score("image", X, OCTETS)
            assert problem["title"] == "Store unavailable" and "postgresql" not in problem["detail"].lower(), problem
            assert client.get("/healthz")[0] == 200
            own.start()
            until(lambda: client.score("image", X, OCTETS)[0] == 200)
