"""For mkdocs: a link that leaves docs/ becomes the path of what it names in the repository."""

import re

_LINK_OUT = re.compile(r"\[[^\]]*\]\(\.\./([^)#]+)[^)]*\)")


def on_page_markdown(markdown: str, **_: object) -> str:
    return _LINK_OUT.sub(r"`\1`", markdown)
