"""Captions made of a template and a name."""

TEMPLATE, TRANSFORMERS_TEMPLATE = "a photo of a {}", "This is a photo of {}."
"""Captions of a label: ours, and that of transformers' zero-shot pipeline."""


def caption(template: str, name: str) -> str:
    """The template with the name in place of {}; other braces stay as they are."""
    return template.replace("{}", name)
