"""What the page shows: a file a page, each with its addresses."""
