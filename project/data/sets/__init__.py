"""Data sets in the layouts that they are distributed in."""
