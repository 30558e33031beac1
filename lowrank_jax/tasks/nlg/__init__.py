"""Generating texts from data (E2E, WebNLG, DART, WikiSQL, SAMSum): encoded rows, the task, the scores."""
