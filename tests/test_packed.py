from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.packed import PackedExamples
from vl_peft.batch import Example

EXAMPLES = st.lists(
    st.builds(
        Example,
        id=st.text(max_size=5),
        source=st.text(max_size=20),
        visuals=st.tuples(st.text(max_size=3)),
        references=st.tuples(st.integers() | st.text(max_size=3)),
        meta=st.dictionaries(st.sampled_from(["show", "type"]), st.text(max_size=5)),
    ),
    max_size=12,
)


@given(EXAMPLES, st.data())
def test_reads_like_the_list_it_was_made_of(examples: list[Example], data: st.DataObject) -> None:
    packed = PackedExamples(iter(examples))
    assert len(packed) == len(examples)
    assert list(packed) == examples
    assert list(reversed(packed)) == examples[::-1]
    part = data.draw(st.slices(len(examples)))
    assert packed[part] == examples[part]
    for index in range(-len(examples), len(examples)):
        assert packed[index] == examples[index]
    for index in (len(examples), -len(examples) - 1):
        with pytest.raises(IndexError):
            packed[index]


@given(EXAMPLES)
def test_survives_pickling(examples: list[Example]) -> None:
    assert list(pickle.loads(pickle.dumps(PackedExamples(examples)))) == examples


def test_is_an_immutable_sequence() -> None:
    packed = PackedExamples([Example("a", "x", ("v",), meta={"show": "s"})])
    assert isinstance(packed, Sequence)
    packed[0].meta["show"] = "changed"  # type: ignore[index]
    assert packed[0].meta == {"show": "s"}
    with pytest.raises(TypeError):
        packed[0] = packed[0]  # type: ignore[index]


def test_holds_few_python_objects() -> None:
    packed = PackedExamples(Example(str(i), "what is it ?", (str(i),)) for i in range(1000))
    attributes = list(vars(packed).values())
    assert all(value.dtype != object for value in attributes)
    assert sum(value.nbytes for value in attributes) < 1000 * 300
