"""How good answers and labels are, as pure functions of texts and numbers."""

from edgetune.metrics.texts import TextScores, json_of, rouge_l, score_texts, token_f1

__all__ = ["TextScores", "json_of", "rouge_l", "score_texts", "token_f1"]
