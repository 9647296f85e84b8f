"""A step with sampled negatives waits for nothing on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from far_device import FAR, FarDevice
from little import jagged
from test_sampled_method import ITEMS, ROWS, config, step
from torch import Tensor

from seqrec.data.store import SequenceStore
from seqrec.methods import build
from seqrec_kernels import SeenItems, rerank_negatives


@pytest.mark.parametrize("rows", ["positions", "prefixes"])
@pytest.mark.parametrize("sampler", ["uniform", "popularity", "dns+", "r2ns"])
def test_no_step_waits_for_the_device(
    rows: str, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But inside an operator with forbidden items, where nothing faster than torch runs."""

    def rerank(*args: Any, forbidden: SeenItems | None, **more: Any) -> Tensor:
        assert forbidden is not None and str(forbidden.ids.device) == FAR
        return rerank_negatives(*args, **more)

    monkeypatch.setattr("seqrec.negatives.r2ns.rerank_negatives", rerank)
    named = config(method__rows=rows, negatives__sampler=sampler)
    with FarDevice() as far:
        method = build(named, ITEMS).to(FAR)
        store = SequenceStore(jagged(*ROWS), FAR)
        method.prepare(store)
        for epoch in (0, 1):
            with far.region() as region:
                method.loss(method.batch(store, np.arange(4), step()), step(epoch)).backward()
            waits = [violation for violation in region.violations if "waits" in violation]
            assert not waits
