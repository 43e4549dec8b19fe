"""Which language a text is in, at a glance: by its script, and by small words where that is Latin."""

from __future__ import annotations

import re

_SCRIPTS = {
    "Japanese": re.compile("[\u3040-\u30ff]"), "Korean": re.compile("[\uac00-\ud7af]"),
    "Chinese": re.compile("[\u4e00-\u9fff]"), "Russian or near": re.compile("[\u0400-\u04ff]"),
    "Arabic or near": re.compile("[\u0600-\u06ff]"), "Hindi or near": re.compile("[\u0900-\u097f]"),
    "Greek": re.compile("[\u0370-\u03ff]"), "Hebrew": re.compile("[\u0590-\u05ff]"),
    "Thai": re.compile("[\u0e00-\u0e7f]"),
}  # fmt: skip
_WORDS = {
    "English": "the and of to is in that it you for with are this was be not what how",
    "German": "der die und das ist nicht ein eine mit den zu von auf wie sich auch ich es",
    "French": "le la les et des est une un que pour dans pas avec sur vous du il qui",
    "Spanish": "el la los y de que en un una es por con para no las se del como",
    "Italian": "il la di che e un una per non con sono del della in come si gli le",
    "Portuguese": "o a os e de que um uma para com não do da em por se mais como",
    "Dutch": "de het een en van is dat niet in op te voor met zijn er aan wat hoe",
    "Polish": "i w na się że jest nie z do to jak co o po za od przez dla",
}  # fmt: skip
_SMALL = {name: frozenset(words.split()) for name, words in _WORDS.items()}
_LETTERS = re.compile(r"[^\W\d_]+")
_READ = 2_000  # characters; enough to tell


def language_of(text: str) -> str:
    """Return the language that a text most likely is in, ``unclear`` where nothing tells."""
    read = text[:_READ]
    letters = sum(map(len, _LETTERS.findall(read)))
    for name, script in _SCRIPTS.items():
        if letters and len(script.findall(read)) > 0.2 * letters:
            return name
    words = _LETTERS.findall(read.lower())
    counts = {name: sum(word in small for word in words) for name, small in _SMALL.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] >= 2 or (counts[best] and len(words) < 8) else "unclear"
