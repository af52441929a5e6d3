"""Arrays of JSON are read item by item: as ``json`` reads them, and a damaged item costs no other."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal_jax.core.json_items import read_json_items

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)


@given(st.lists(VALUES), st.sampled_from([None, 1, "\t"]))
def test_whole_arrays_are_read_as_json_reads_them(values, indent):
    text = json.dumps(values, ensure_ascii=True, indent=indent)
    items = list(read_json_items(text))
    assert [item.value for item in items] == json.loads(text) and not any(item.error for item in items)
    named = json.dumps({"info": values, "a": values, "x": {"a": 1}, "b": values}, indent=indent)
    items = list(read_json_items(named, ("a", "b")))
    assert [(i.array, i.value) for i in items] == [("a", v) for v in values] + [("b", v) for v in values]


@pytest.mark.parametrize(
    "damaged,reason",
    [
        ('{"a": nope}', "not JSON"),
        ('{"a": 1, "a": 2}', "there twice"),
        ('{"a": "x}', "not JSON"),
        ('{"a": 1', "not JSON"),
        ('{"a": [1}', "not JSON"),
        ('{"a": {"b": 1}, "c": [{"d": 1}, {"e": nope}, {"f": 1}]}', "not JSON"),
        ('{"a": "caf\udce9"}', r"byte 11 .0xe9. is not UTF-8"),
        ('{"a": ' + "9" * 5000 + "}", "thousands of digits"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_item_costs_no_other(damaged, reason, place):
    items = [f'{{"k": {k}}}' for k in range(3)]
    items[place] = damaged
    found = list(read_json_items("[\n" + ",\n".join(items) + "\n]"))
    assert [item.value for item in found] == [None if k == place else {"k": k} for k in range(3)]
    assert [item.line for item in found] == [2, 3, 4]
    assert all((item.error is None) == (k != place) for k, item in enumerate(found))
    assert re.search(reason, found[place].error)


@pytest.mark.parametrize(
    "text,line",
    [
        ("", 1), ("{}", 1), ('[{"a": 1},\n{"b": 2}', 2), ('[\n\n{"a": 1}\n', 3), ('[{"a": 1},', 1), ("[1, 2", 1),
        ('[{"a": 1}\n{"b": 2}]', 2),
    ],
)  # fmt: skip
def test_an_array_that_does_not_end_is_said(text, line):
    errors = [item for item in read_json_items(text) if item.error]
    assert [item.line for item in errors] == [line]


@pytest.mark.parametrize(
    "text", ["[]", "", '{"a" 1}', '{"a": 3}', '{"a": [1]', '{"x": 1', '{"x": 1, "a": {}}', "{3: 1}"]
)
def test_an_object_that_is_damaged_is_said(text):
    assert any(item.error for item in read_json_items(text, ("a",)))
