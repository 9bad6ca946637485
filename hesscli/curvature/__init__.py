"""The operator of a model on data: the loss, the products, their self-tests and the choice between them."""
