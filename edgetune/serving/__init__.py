"""Opened models for other programs: OpenAI's API on loopback, prompts batched in their order.

Its packages are an extra (``serve``); nothing here is imported before they are looked for.
"""
