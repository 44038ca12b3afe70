"""Captions made of a template and a name."""


def caption(template: str, name: str) -> str:
    """The template with the name in place of {}; other braces stay as they are."""
    return template.replace("{}", name)
