"""A Sphinx extension: a picture that comes from another page is read out as the text below it."""

from docutils import nodes


def describe(app, doctree: nodes.document, page: str) -> None:
    """Give each image without a text the first paragraph that follows it."""
    parts = list(doctree.findall(lambda node: isinstance(node, (nodes.image, nodes.paragraph))))
    for i, node in enumerate(parts):
        if isinstance(node, nodes.image) and not node.get("alt"):
            texts = [part for part in parts[i:] if isinstance(part, nodes.paragraph)]
            node["alt"] = texts[0].astext() if texts else ""


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("doctree-resolved", describe)
    return {"parallel_read_safe": True}
