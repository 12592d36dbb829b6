from xml.etree import ElementTree

from steerlift.play.chart import line_chart


def test_points_stand_where_their_numbers_say():
    chart = ElementTree.fromstring(line_chart("Shares", {"base": [(0, 0.0), (1, 0.5), (2, 1.0)]}, [0, 1, 2], "weight"))
    (line,) = chart.iter("polyline")
    places = [tuple(map(float, place.split(","))) for place in line.get("points").split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert places[1] == tuple((first + last) / 2 for first, last in zip(places[0], places[2], strict=True))
    grid = [float(each.get("y1")) for each in chart.iter("line")]
    assert (places[0][1], places[2][1]) == (max(grid), min(grid))
    assert [text.text for text in chart.iter("text")] == ["0", "50", "100", "0", "1", "2", "weight"]
    assert chart.get("aria-label") == "Shares"


def test_nothing_and_a_single_point_are_charts_too():
    empty = ElementTree.fromstring(line_chart("Shares", {"base": []}, [0], "tried"))
    assert not list(empty.iter("polyline"))
    single = ElementTree.fromstring(line_chart("Shares", {"base": [(1, 1.0)]}, [1], "tried"))
    assert len(list(single.iter("circle"))) == 1
