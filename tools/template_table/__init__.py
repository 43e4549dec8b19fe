"""The table of chat templates: which chats each structure writes exactly, and what becomes of others."""
