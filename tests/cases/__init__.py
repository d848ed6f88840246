"""Cases as data, and the torch modules made from them."""
