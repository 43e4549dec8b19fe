"""Every model type that transformers knows is trained here, or refused for what it is."""

from __future__ import annotations

import pytest
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from edgetune.errors import ModelError
from edgetune.model import shape_of
from edgetune.model.families import supported
from edgetune.model.families.kinds import KINDS
from edgetune.model.families.refused import kind_of

CAUSAL = set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
ENCODERS = set(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
ENCODERS_DECODERS = set(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
SEES = set(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
LOOKS = {
    *auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    *auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    *auto.MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES,
}
HEARS = {
    *auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    *auto.MODEL_FOR_CTC_MAPPING_NAMES,
    *auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    *auto.MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES,
}
DECODER = "a decoder that is not supported yet"


def test_all_that_are_not_supported_have_a_word_and_an_exit_code() -> None:
    wordless = []
    for model_type in CONFIG_MAPPING_NAMES:
        if model_type in supported():
            continue
        with pytest.raises(ModelError) as caught:
            shape_of({"model_type": model_type})
        assert caught.value.exit_code == 5
        kind = kind_of(model_type, {})
        if kind is None:
            wordless.append(model_type)
        else:
            assert f"Unsupported model type '{model_type}' ({kind})." in str(caught.value)
    assert not wordless


def test_the_table_knows_no_other_types() -> None:
    assert KINDS.keys() <= CONFIG_MAPPING_NAMES.keys()


@pytest.mark.parametrize(
    ("types", "words"),
    [
        (ENCODERS - CAUSAL - ENCODERS_DECODERS - LOOKS, {"encoder", "vision-language"}),
        (ENCODERS_DECODERS - HEARS - SEES, {"encoder-decoder", "audio", "experts"}),
        (SEES, {"vision-language", "images", "experts", "linear attention", "audio", "diffusion"}),
        (HEARS - SEES, {"audio", "vision-language", "experts"}),
        (LOOKS - ENCODERS, {"images", "vision-language"}),
        (CAUSAL - ENCODERS - ENCODERS_DECODERS, {
            "decoder that", "experts", "state-space", "linear attention", "vision-language", "audio",
            "encoder"}),
    ],
    ids=["encoders", "encoders and decoders", "seeing", "hearing", "looking", "decoders"],
)  # fmt: skip
def test_the_word_agrees_with_what_transformers_makes_of_it(
    types: set[str], words: set[str]
) -> None:
    for model_type in types - set(supported()):
        kind = kind_of(model_type, {}) or ""
        assert any(word in kind for word in words), (model_type, kind)


def test_decoders_that_are_not_supported_are_decoders() -> None:
    found = {name for name, kind in KINDS.items() if kind == DECODER}
    assert found <= CAUSAL
    assert not found & (SEES | HEARS)
