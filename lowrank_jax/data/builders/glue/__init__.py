"""The GLUE data sets."""
