"""Obelisk: a vault of Markdown notes as a site and as a knowledge base."""

__version__ = "0.1.0"
