import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlift.records.errors import InputError
from steerlift.serving.steering_field import MOST_VECTORS, cache_salt, canonical, parse_canonical, seal, unseal

LAYERS = 3
DIGESTS = {"a": "1" * 64, "b": "2" * 64}


def digest_of(name):
    if name not in DIGESTS:
        raise InputError(f"no {name}")
    return DIGESTS[name]


def form(field):
    return canonical(field, digest_of, LAYERS)


@pytest.mark.parametrize(
    "field",
    [
        None,
        [],
        {"vector": "a", "weight": 0},
        {"vector": "a", "weight": [0, 0.0, 0]},
        [{"vector": "a", "weight": 0}, {"vector": "b", "weight": 0}],
        [{"vector": "a", "weight": 1}, {"vector": "a", "weight": -1}],
    ],
)
def test_what_adds_nothing_is_the_base(field):
    assert form(field) is None


def test_the_same_steering_has_one_form_however_it_is_written():
    written = [
        [{"vector": "b", "weight": 0.5}, {"vector": "a", "weight": 1}],
        [{"vector": "a", "weight": 1.0}, {"vector": "b", "weight": [0.5, 0.5, 0.5]}],
        [{"vector": "a", "weight": 0.5}, {"vector": "a", "weight": 0.5}, {"vector": "b", "weight": 0.5}],
    ]
    assert len({form(field) for field in written}) == 1
    assert parse_canonical(form(written[0])) == [(DIGESTS["a"], 1.0), (DIGESTS["b"], 0.5)]


@given(st.lists(st.floats(-1000, 1000), min_size=LAYERS, max_size=LAYERS).filter(any))
def test_weights_per_layer_come_back_as_they_were(weights):
    [(digest, weight)] = parse_canonical(form({"vector": "a", "weight": weights}))

    assert digest == DIGESTS["a"]
    assert (weight if isinstance(weight, list) else [weight] * LAYERS) == weights


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("a", "got 'a', expected {"),
        (3, "got 3"),
        ({"vector": "a"}, "steering.weight: got None, expected a number between -1000 and 1000"),
        ({"weight": 1}, "steering.vector: got None"),
        ({"vector": "a", "weight": True}, "got True"),
        ({"vector": "a", "weight": "1"}, "got '1'"),
        ({"vector": "a", "weight": float("nan")}, "got nan"),
        ({"vector": "a", "weight": float("-inf")}, "got -inf"),
        ({"vector": "a", "weight": 10**400}, "got 1000"),
        ({"vector": "a", "weight": [1, 2]}, "got 2 numbers, expected one, or 3: one per layer"),
        ({"vector": "a", "weight": [1, 2, float("nan")]}, "got nan"),
        ({"vector": "a", "weight": 1, "layers": [1]}, "unknown key 'layers'"),
        ({"vector": "c", "weight": 1}, "no c"),
        ([[{"vector": "a", "weight": 1}]], "steering: got"),
        ([{"vector": "a", "weight": 1}] * (MOST_VECTORS + 1), "got 65 vectors, expected at most 64"),
    ],
)
def test_what_is_no_steering_is_refused_with_the_reason(field, reason):
    with pytest.raises(InputError) as error:
        form(field)

    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_only_the_key_s_own_seal_is_accepted():
    text = form({"vector": "a", "weight": 1})
    sealed = seal(text, "key")

    assert unseal(sealed, "key") == text
    for forged in (text, f":{text}", seal(text, "other"), sealed.replace("1.0", "2.0"), "", None, 5, [sealed], "é:[]"):
        with pytest.raises(InputError, match="server's own"):
            unseal(forged, "key")


def test_salts_differ_by_configuration_and_by_the_client_s_salt():
    forms = [form({"vector": name, "weight": weight}) for name in DIGESTS for weight in (1, 2)]
    salts = [cache_salt(text, salt) for text in forms for salt in (None, "x", json.dumps([text, None]))]

    assert len(set(salts)) == len(salts)
    assert cache_salt(forms[0], "x") == cache_salt(forms[0], "x")
