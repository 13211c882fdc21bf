"""Learning algorithms: losses and updates as pure functions. One method, one file."""
