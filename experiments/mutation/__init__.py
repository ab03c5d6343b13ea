"""Which changes of one token the tests see."""
