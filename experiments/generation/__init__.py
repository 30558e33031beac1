"""What `experiments.generate` is made of: the model, its prompts, and what is printed and written."""

# How base and adapter are computed: separately, as in training; or together, in the layout that decodes fastest
# (`decoding.weights`), with sums kept exact or rounded to the base's dtype.
WEIGHTS = BESIDE, EXACT, ROUNDED = ("beside", "exact", "merged")
