"""Policies that speak: any language or vision-language model of transformers, conversations, tools, and recipes."""

from .. import __version__ as __version__
