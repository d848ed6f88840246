"""A report is one HTML file that needs nothing else, and Markdown that says the same; its pictures are drawn."""

import base64
import io
import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest

from lightning_modules.comparison import charts
from lightning_modules.comparison.document import Document, Heading, Notes, Picture, Table, Text

EMPTY = {"meta", "img", "br"}


class Strict(HTMLParser):
    """Collects tags, and fails where they are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.data = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.data.append(data)


def parse(html):
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert not parser.open and html.startswith("<!DOCTYPE html>")
    return parser


def assert_self_contained(html):
    """Nothing is loaded: no address in any attribute but those of embedded pictures, no script, no import."""
    parser = parse(html)
    for tag, attributes in parser.seen:
        assert tag not in ("script", "link", "iframe", "object")
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "data"):
                assert value.startswith("data:image/png;base64,")
                assert base64.b64decode(value.partition(",")[2]).startswith(b"\x89PNG")
    assert "@import" not in html and "url(" not in html
    return parser


PNG = charts.bars({"a": 1.0, "b": 2.0}, {}, "seconds", str)


@pytest.fixture
def document():
    parts = [
        Heading("Accuracy & <cost>"),
        Text("5 < 6"),
        Text("stllr compare", code=True),
        Table(["name", "a|b"], [["x|y", "<1>"], ["z", "2"]], strong=(1,)),
        Picture("bars", PNG, "Two bars."),
        Notes(["first", "second"]),
    ]
    return Document("S-TLLR & BPTT", parts)


def test_html_parses_and_loads_nothing(document):
    parser = assert_self_contained(document.html())
    text = "".join(parser.data)
    for words in ("S-TLLR & BPTT", "Accuracy & <cost>", "5 < 6", "stllr compare", "x|y", "<1>", "second"):
        assert words in text
    assert [tag for tag, _ in parser.seen].count("img") == 1


def test_markdown_has_the_same_and_its_pictures_beside_it(document, tmp_path):
    markdown, html = document.write(tmp_path)
    text = markdown.read_text()
    assert text.startswith("# S-TLLR & BPTT\n") and "```text\nstllr compare\n```" in text
    assert "| name | a\\|b |" in text and "| x\\|y | **<1>** |" in text
    (picture,) = re.findall(r"!\[Two bars.\]\((.*)\)", text)
    assert (tmp_path / picture).read_bytes() == PNG and html.is_file()


def pixels(png):
    image = matplotlib.image.imread(io.BytesIO(png))[..., :3]
    assert image.shape[0] > 100 and image.shape[1] > 300
    return image


def has_colour(png, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return bool((np.abs(pixels(png) - wanted).max(-1) < 0.02).sum() > 20)


COLOURS = charts.colours_of(["S-TLLR", "BPTT"])


@pytest.mark.parametrize(
    "png",
    [
        charts.accuracy_points({"S-TLLR": [0.9, 0.95, 0.93], "BPTT": [0.9]}, COLOURS, "accuracy"),
        charts.learning_curves({"S-TLLR": [[0.1, 0.5], [0.2, 0.6, 0.7]], "BPTT": [[0.1, 0.2]]}, COLOURS, "accuracy"),
        charts.memory_lines({"S-TLLR": {10: 5_000_000, 20: 5_000_000}, "BPTT": {10: 1e7, 20: 2e7}}, COLOURS, 20),
        charts.bars({"S-TLLR": 1.0, "BPTT": 0.0}, COLOURS, "s", str),
    ],
    ids=["points", "curves", "memory", "bars"],
)
def test_pictures_show_every_contender(png):
    assert has_colour(png, COLOURS["S-TLLR"]) and (
        has_colour(png, COLOURS["BPTT"]) or png == charts.bars({"S-TLLR": 1.0, "BPTT": 0.0}, COLOURS, "s", str)
    )


def test_heat_map_is_darker_where_accuracy_is_higher():
    cells = {("a", "x"): [0.2, 0.3], ("a", "y"): [0.9], ("b", "x"): [0.5]}  # one cell is missing
    image = pixels(charts.heat_map(cells, ["a", "b"], ["x", "y"], ("rows", "columns"), (0.25, 0.9), "title"))
    height, width = image.shape[:2]
    low, high, missing = (
        image[int(height * y), int(width * x)].mean() for x, y in ((0.2, 0.2), (0.9, 0.2), (0.9, 0.7))
    )
    assert missing == 1.0 and high < low < 1.0
    pixels(charts.heat_map({("a", "x"): [0.5]}, ["a"], ["x"], ("r", "c"), (0.5, 0.5)))  # one value is no range
