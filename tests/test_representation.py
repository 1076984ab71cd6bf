"""Names of blocks and representations as values."""

from __future__ import annotations

import pickle

import pytest

from featx.representation import BlockName, Representation, block_name, is_picked, is_usual, layer_of

WIDTHS = {"last:avg:crop": 8, "last:max:crop": 8, "blocks.1:avg:crop": 4, "blocks.4:grid4:crop": 64}


def test_a_block_name_is_its_text_with_fields() -> None:
    name = BlockName.parse("net/blocks.4:grid4:squash:view2")
    assert name == "net/blocks.4:grid4:squash:view2"
    assert (name.network, name.cut, name.pool, name.resize, name.view) == (
        "net", "blocks.4", "grid4", "squash", 2,
    )  # fmt: skip
    assert name.with_fields(network="", view=0) == "blocks.4:grid4:squash"
    assert pickle.loads(pickle.dumps(name)).cut == "blocks.4"
    with pytest.raises(ValueError, match="not the name of a block"):
        BlockName.parse("pixels")


def test_other_names_stay_text() -> None:
    assert isinstance(block_name("last:avg:crop"), BlockName)
    assert type(block_name("pixels")) is str
    assert [layer_of(block_name(text)) for text in ("net/last:avg:crop", "last:max:crop", "pixels")] == [
        "net/last", "last", "pixels",
    ]  # fmt: skip


def test_the_usual_features_are_averages_of_the_last_layer() -> None:
    texts = (
        "last:avg:crop",
        "last:avg+max:pad",
        "last:max:crop",
        "blocks.4:avg:crop",
        "net/last:avg:crop",
        "x",
    )
    assert [is_usual(block_name(text)) for text in texts] == [True, True, False, False, False, False]


def test_the_text_of_a_representation_is_read_back() -> None:
    several = Representation(tuple(map(block_name, WIDTHS)))
    picked = Representation(several.blocks, 1024)
    assert str(several) == "last:avg:crop + last:max:crop + blocks.1:avg:crop + blocks.4:grid4:crop"
    assert str(picked) == "relevant:1024"
    assert [Representation.read(str(one), WIDTHS) for one in (several, picked)] == [several, picked]
    assert [is_picked(str(one)) for one in (several, picked)] == [False, True]


def test_few_blocks_are_simpler_than_many_and_the_usual_ones_than_others() -> None:
    names = [block_name(text) for text in WIDTHS]
    order = [
        Representation((names[0],)),
        Representation((names[2],)),
        Representation((names[1],)),  # as many blocks, more columns
        Representation((names[0], names[3])),
        Representation((names[1], names[2])),
        Representation(tuple(names)),
        Representation(tuple(names), 1024),
        Representation(tuple(names), 4096),
    ]
    keys = [one.complexity(WIDTHS) for one in order]
    assert keys == sorted(set(keys))
