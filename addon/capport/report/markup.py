"""HTML and SVG as a tree, so that nothing that a client sent can be taken for markup."""

from collections.abc import Iterable
from xml.etree import ElementTree

from capport.report.wording import printable

type Node = ElementTree.Element
type Child = Node | str | None


def tag(name: str, /, *children: Child | Iterable[Child], **attributes: str | None) -> Node:
    """An element. `class_` is the attribute class, `aria_label` is aria-label; None is left out."""
    given = {
        key.rstrip("_").replace("_", "-"): printable(value)
        for key, value in attributes.items()
        if value is not None
    }
    node = ElementTree.Element(name, given)
    for child in children:
        if isinstance(child, str):
            _append_text(node, printable(child))
        elif isinstance(child, ElementTree.Element):
            node.append(child)
        elif child is not None:
            for one in child:
                _append(node, one)
    return node


def style(text: str) -> Node:
    """A style element; `text` is ours, and goes into the page as it is."""
    node = ElementTree.Element("style")
    node.text = text
    return node


def page(root: Node) -> str:
    """The whole document."""
    text = ElementTree.tostring(root, encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{text}\n"


def _append(node: Node, child: Child) -> None:
    if isinstance(child, str):
        _append_text(node, printable(child))
    elif child is not None:
        node.append(child)


def _append_text(node: Node, text: str) -> None:
    if len(node):
        node[-1].tail = (node[-1].tail or "") + text
    else:
        node.text = (node.text or "") + text
