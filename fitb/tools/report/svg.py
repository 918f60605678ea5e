"""Adaptation of matplotlib's SVG to a page: size, title, ids and colours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_DECIMALS = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point is enough
_FAMILY = re.compile(r"font: (?P<before>[^;]*?\d(?:px|pt)) [^;]*")
_SHAPES = ("d", "transform", "x", "y", "points", "width", "height", "viewBox")
_DROPPED = ("metadata", "style")


def inline(svg: str, name: str, title: str, about: str, colours: Mapping[str, str]) -> str:
    """Adapt an SVG of matplotlib to an HTML page.

    It scales with its box, has a title and a description for screen readers, and uses the page's
    font.

    Args:
        svg: SVG with text as text, drawn with `svg.hashsalt` = `name`: no two charts share an id.
        colours: #rrggbb -> name of the CSS variable that replaces it.
    """
    root = ElementTree.fromstring(svg.encode())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.removeprefix(_SVG) in _DROPPED:
                parent.remove(child)
    for element in root.iter():
        _clean(element, colours)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-about",
        "xmlns": "http://www.w3.org/2000/svg",
    }
    for place, (tag, key, text) in enumerate((("title", "title", title), ("desc", "about", about))):
        element = ElementTree.Element(tag, {"id": f"{name}-{key}"})
        element.text = text
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, colours: Mapping[str, str]) -> None:
    element.tag = element.tag.removeprefix(_SVG)
    element.tail = None
    if element.tag != "text":
        element.text = None
    attributes = element.attrib
    if element.tag == "g":  # its id names an artist, is in every chart, and is not referred to
        attributes.pop("id", None)
    if target := attributes.pop(_HREF, None):
        attributes["href"] = target
    for key, text in attributes.items():
        if key in _SHAPES:
            text = _DECIMALS.sub(r"\1", " ".join(text.split()))
        if key == "style":
            text = _FAMILY.sub(r"font-size: \g<before>", text)
            for colour, variable in colours.items():
                text = text.replace(colour, f"var({variable})")
        attributes[key] = text
