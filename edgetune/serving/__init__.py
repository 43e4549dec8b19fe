"""Opened models for other programs: OpenAI's API on loopback, prompts batched in their order."""
