import pytest

from steerlift.scoring.units import split_unit, units_conflict


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        (r"5 \text{ cm}", "5", "cm"),
        (r"5\text{ centimeters}", "5", "cm"),
        (r"12\text{ in}^2", "12", "in^2"),
        ("12 square inches", "12", "in^2"),
        ("12 cm^2", "12", "cm^2"),
        ("5cm", "5", "cm"),
        (r"14\pi square units", r"14\pi", ""),
        ("12 apples", "12", ""),
        (r"17\text{ any text}", "17", ""),
        ("60 miles per hour", "60", "mph"),
        ("60 km/h", "60", "km/h"),
        (r"\$5", "5", "$"),
        ("5 dollars", "5", "$"),
        ("£1,000", "1,000", "£"),
        (r"45^\circ", "45", "degree"),
        ("45 degrees", "45", "degree"),
        (r"9\text{ a.m.}", "9", "am"),
        (r"50\%", r"50\%", "%"),
        ("3t", "3t", None),  # a product, which math-verify's own table takes for tonnes
        ("5 m", "5 m", None),
        ("5ab", "5ab", None),
        ("3 million", "3 million", None),
        (r"3\text{ or more}", r"3\text{ or more}", None),
        (r"n\text{ even}", r"n\text{ even}", None),
        (r"2\sin", r"2\sin", None),
        ("east", "east", None),
        (r"\$", r"\$", "$"),
        ("", "", None),
    ],
)
def test_a_unit_is_split_from_its_number(text, value, unit):
    assert split_unit(text) == (value, unit)


def test_only_two_known_units_can_conflict():
    assert units_conflict("cm", "m")
    assert not units_conflict("cm", "cm")
    assert not units_conflict("cm", None)
    assert not units_conflict("cm", "")
    assert not units_conflict(None, None)
