import pytest

from steerlift.play.guard import is_from_here


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ({"host": "127.0.0.1:8080"}, True),
        ({"host": "localhost:8080", "origin": "http://localhost:8080"}, True),
        ({"host": "[::1]:8080"}, True),
        ({"host": "evil.example:8080"}, False),
        ({"host": "127.0.0.1:8080", "origin": "http://evil.example"}, False),
        ({"host": "127.0.0.1:8080", "origin": "null"}, False),
        ({}, False),
    ],
)
def test_only_this_machines_own_page_is_admitted(headers, admitted):
    assert is_from_here([(name.encode(), value.encode()) for name, value in headers.items()]) is admitted
