"""A machine whose speed is known: plans of tests do not depend on how busy this one is."""

from __future__ import annotations

from edgetune.device import read_device
from edgetune.speed import Measurements, settings_of, versions_of


def plain_measurements(backend: str = "torch") -> Measurements:
    """Return round figures of a processor with 16-bit products, as a backend would find them."""
    return Measurements(
        device=read_device("cpu").name,
        versions=versions_of(backend),
        settings=settings_of(),
        product_32bit=1e11,
        product_16bit=2e11,
        attention_32bit=2e10,
        attention_16bit=2e10,
        pointwise=1e10,
        convert=1e9,
        dequantize=1e9,
        optimizer=2e8,
        link_bandwidth=0.0,
        disk_bandwidth=1e9,
        operation=1e-5,
        opening=2.0,
    )
