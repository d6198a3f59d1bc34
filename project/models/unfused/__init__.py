"""Modules that do several things at once, written out as a layer each, and their tensors put together again."""
