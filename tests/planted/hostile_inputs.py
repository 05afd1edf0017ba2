"""Bugs of what is read from elsewhere: data, templates, settings, models, other ranks."""

from __future__ import annotations

from tests.planted.bug import Bug

BUGS: list[Bug] = []
