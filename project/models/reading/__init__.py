"""Files of weights in whatever form: bytes to tensors, tensors to names that are known; nothing a file names is run."""
