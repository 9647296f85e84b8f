"""Runs side by side: one table for each protocol and data, seeds as one row, intervals, curves."""

from __future__ import annotations

from seqrec.comparison.tables import Difference, Figure, Row, Table, compare

__all__ = ["Difference", "Figure", "Row", "Table", "compare"]
