import pytest

from steerlift.records.errors import InputError
from steerlift.steering.layer_ranges import parse_layers, parse_runs


def test_runs_are_read_in_order():
    assert parse_runs("0-2, 5", "--layers") == ((0, 1, 2), (5,))
    assert parse_runs("", "--layers") == ()
    assert parse_layers("5,0-2", 6, "--layers") == [0, 1, 2, 5]
    assert parse_layers("", 3, "--layers") == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("all", "got 'all'; expected runs of layers such as"),
        ("2-1", "got '2-1'"),
        ("1,,2", "got ''"),
        ("-1", "got '-1'"),
        ("0-2,2", "a layer is named twice"),
        ("0-6", "got layer 6, the model has 0 to 5"),
    ],
)
def test_what_names_no_layers_is_refused(text, message):
    with pytest.raises(InputError, match=f"--layers {text}: {message}"):
        parse_layers(text, 6, "--layers")
