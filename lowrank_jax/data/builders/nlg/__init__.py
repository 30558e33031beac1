"""The generation data sets: E2E, WebNLG, DART, WikiSQL and SAMSum."""
