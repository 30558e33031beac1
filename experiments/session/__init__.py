"""From a config to a run: built on shapes, then loaded, trained and exported."""
