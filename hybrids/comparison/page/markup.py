"""HTML as values: whatever is not markup already is escaped."""

from collections.abc import Iterable
from html import escape

__all__ = ["Html", "element", "joined"]

_VOID = ("br", "img", "meta")


class Html(str):
    """Text that is markup."""


def joined(parts: Iterable[str], between: str = "") -> Html:
    """Parts one after the other, those that are no markup escaped."""
    return Html(between.join(part if isinstance(part, Html) else escape(part) for part in parts))


def element(tag: str, *children: str, **attributes: str | int | bool | None) -> Html:
    """`<tag attributes>children</tag>`; `class_` is class, `aria_label` aria-label; None and False are left out."""
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{tag}{written}>" if tag in _VOID else f"<{tag}{written}>{joined(children)}</{tag}>")
