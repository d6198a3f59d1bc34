"""Bytes that phases of a merge take, by arithmetic on shapes."""

import pytest
from torch import nn

from project.fit import memory_estimate
from project.fit.memory_estimate import drawn_bytes, patch_bytes
from project.symmetry import trace


def test_patches_are_written_out_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(32, 5))
    spec = trace(network.eval(), (3, 6, 6))
    each = 4 * (4 * 4) * 3 * 9  # bytes of what the first layer multiplies on one picture: 16 patches of 27 numbers
    assert patch_bytes(spec, spec.sizes, 7) == 7 * each
    assert drawn_bytes(spec, spec.sizes, 7, 4) == 7 * each // 4
    monkeypatch.setattr(memory_estimate, "CHUNK_BYTES", 3 * each)
    assert patch_bytes(spec, spec.sizes, 7) == 3 * each
    monkeypatch.setattr(memory_estimate, "CHUNK_BYTES", 1)
    assert patch_bytes(spec, spec.sizes, 7) == each, "a picture at a time at least"
