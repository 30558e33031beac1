"""Data sets of text from data: E2E, WebNLG, DART, WikiSQL and SAMSum."""
