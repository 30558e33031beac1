"""What `experiments.generate` is made of: the model, its prompts, and what is printed and written."""

# How weights are read: adapters beside their base, as in training; or in its products, the layout that decodes fastest,
# without a loss or rounded to the base's dtype (`decoding.weights`).
WEIGHTS = BESIDE, EXACT, ROUNDED = ("beside", "exact", "merged")
