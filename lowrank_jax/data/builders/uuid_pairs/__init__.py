"""The uuid_pairs data set."""
