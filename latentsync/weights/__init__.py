"""Files of weights: find, download and verify them, read them safely, and load networks from them."""
