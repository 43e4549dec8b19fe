"""What a run may be told: every setting once, and how a file's values become settings."""
