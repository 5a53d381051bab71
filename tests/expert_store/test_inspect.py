from __future__ import annotations

import json

from smallthinker.expert_store.inspect import describe
from smallthinker.expert_store.store import Store


def test_a_description_is_plain_data_and_adds_up(opened: Store) -> None:
    found = json.loads(json.dumps(describe(opened)))
    assert sum(found["bytes"]["dense_parts"].values()) == found["bytes"]["dense"] == opened.dense_bytes
    assert found["experts"]["total"] * found["experts"]["record_bytes"] == found["bytes"]["experts"]
    assert found["bytes"]["total"] == sum(file.stat().st_size for file in opened.path.iterdir())
