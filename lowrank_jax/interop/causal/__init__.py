"""The files of Llama and of the families that are read as one: rotary fields, windows, names, an entry a family."""
