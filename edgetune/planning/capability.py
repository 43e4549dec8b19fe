"""What may be chosen for a model on a device."""

from __future__ import annotations

from dataclasses import replace

from edgetune.device import Device
from edgetune.device.capability import Capability
from edgetune.memory import Platform
from edgetune.settings.spec import SFT, ObjectiveName
from edgetune.shape import ModelShape, Published
from edgetune.storage import FILE_FORMAT, broken_rows


def fitting(capability: Capability, shape: ModelShape) -> Capability:
    """Return what can be chosen for a model: formats in groups need inputs that are whole groups.

    What is in blocks stays as it is in its file.
    """
    if shape.formats is not None:
        return replace(capability, quantizations=(FILE_FORMAT,), on_request=())
    if shape.published is not None:
        capability = _of_published(capability, shape.published)
    return replace(
        capability,
        quantizations=tuple(x for x in capability.quantizations if not broken_rows(shape, x)),
        on_request=tuple(x for x in capability.on_request if not broken_rows(shape, x)),
    )


def _of_published(capability: Capability, published: Published) -> Capability:
    """Return what can be chosen for a checkpoint that is quantized.

    Formats that are larger than its own would round it and save less: they are taken on request.
    Rows of a packed embedding or head cannot be read one by one.
    """
    formats, own = capability.quantizations, published.kept_as
    if own in formats:
        larger = formats[1 : formats.index(own)]
        capability = replace(
            capability,
            quantizations=tuple(x for x in formats if x not in larger),
            on_request=(*larger, *(x for x in capability.on_request if x not in larger)),
        )
    if published.vocabulary:
        capability = replace(capability, embeddings=("resident",), heads=("resident",))
    return capability


def scoring(capability: Capability, shape: ModelShape, objective: ObjectiveName) -> Capability:
    """Return what can be chosen for a model with an objective."""
    scored = objective == SFT or capability.keeps_scored
    lending = not shape.lenders or capability.keeps_lending
    return replace(capability, keeps_blocks=scored and lending)


def platform_of(device: Device) -> Platform:
    """Return what of a device decides bytes."""
    return Platform(
        kind=device.kind,
        multiplies_16bit=device.multiplies_16bit,
        attends_16bit=device.has_bfloat16,
        kernels=device.kernels,
    )
