"""What a model is: the contract, its program, priors, and values that can be kept in files. Knows no kind of models."""
