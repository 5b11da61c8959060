"""HTML and SVG as a tree, so that nothing that a client sent can be taken for markup."""

from collections.abc import Iterable
from xml.etree import ElementTree

from capport.terminal import visible

type Node = ElementTree.Element
type Child = Node | str | None


def tag(name: str, /, *children: Child | Iterable[Child], **attributes: str) -> Node:
    """An element. `class_` is the attribute class, `aria_label` is aria-label."""
    given = {key.rstrip("_").replace("_", "-"): visible(value) for key, value in attributes.items()}
    node = ElementTree.Element(name, given)
    for child in children:
        if child is None or isinstance(child, str | ElementTree.Element):
            _append(node, child)
        else:
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
    if isinstance(child, ElementTree.Element):
        node.append(child)
    elif child and len(node):
        node[-1].tail = (node[-1].tail or "") + visible(child)
    elif child:
        node.text = (node.text or "") + visible(child)
