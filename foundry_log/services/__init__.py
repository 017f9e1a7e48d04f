"""Services with a budget: clients of a model and of a message bus, whose logs explain a bill."""
