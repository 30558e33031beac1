"""Methods compared at each one's own learning rate: a table, figures, and what the records say of the claims."""
